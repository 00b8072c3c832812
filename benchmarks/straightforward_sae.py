"""A TopK autoencoder's training step the straightforward way: dense products and autograd.

It imports PyTorch alone, so that it runs in any interpreter. `tests/golden` checks its gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def synthetic(rows: int, d: int, seed: int = 0) -> Tensor:
    """Returns activations (rows, d): sparse sums of 4 d directions, with noise and a mean."""
    stream = torch.Generator().manual_seed(seed)
    atoms = torch.randn(4 * d, d, generator=torch.Generator().manual_seed(1234))
    atoms /= atoms.norm(dim=1, keepdim=True)
    code = torch.rand(rows, 4 * d, generator=stream)
    code = torch.where(code < 0.005, 1 + 200 * code, 0.0)
    noise = 0.05 * torch.randn(rows, d, generator=stream)
    return code @ atoms + noise + 0.1


class DenseTopK(nn.Module):
    """u = (x - b_dec) W_enc + b_enc, the k largest positive u, and their dense decoding.

    Args:
        d: Width of an activation.
        latents: Of the dictionary.
        k: Entries that are kept.
        seed: Of the weights.
    """

    def __init__(self, d: int, latents: int, k: int, seed: int = 0) -> None:
        super().__init__()
        weight = torch.randn(latents, d, generator=torch.Generator().manual_seed(seed))
        weight /= weight.norm(dim=1, keepdim=True)
        self.k = k
        self.W_enc = nn.Parameter(weight.T.clone())
        self.b_enc = nn.Parameter(torch.zeros(latents))
        self.W_dec = nn.Parameter(weight.clone())
        self.b_dec = nn.Parameter(torch.zeros(d))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the reconstruction."""
        u = (x - self.b_dec) @ self.W_enc + self.b_enc
        found = u.relu().topk(self.k, dim=1, sorted=False)
        z = torch.zeros_like(u).scatter(1, found.indices, found.values)
        return z @ self.W_dec + self.b_dec

    def loss(self, x: Tensor) -> Tensor:
        """Returns the squared error of a row, on average."""
        return (x - self(x)).square().sum(1).mean()


class DenseStep:
    """One step: loss, gradients, clip, projection of the decoder's, Adam, rows of norm one.

    Args:
        sae: What is trained.
        rate: Learning rate.
    """

    def __init__(self, sae: DenseTopK, rate: float) -> None:
        self.sae = sae
        self.adam = torch.optim.Adam(sae.parameters(), lr=rate)

    def __call__(self, x: Tensor) -> None:
        """Takes the step."""
        self.adam.zero_grad()
        self.sae.loss(x).backward()
        nn.utils.clip_grad_norm_(self.sae.parameters(), 1.0)
        with torch.no_grad():
            weight, gradient = self.sae.W_dec, self.sae.W_dec.grad
            gradient -= (gradient * weight).sum(1, keepdim=True) * weight
        self.adam.step()
        with torch.no_grad():
            weight /= weight.norm(dim=1, keepdim=True)
