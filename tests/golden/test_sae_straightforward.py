"""The benchmark's dense baseline against gradients that SAELens 6.54.12 computed.

SAELens ranks u times the norm of the decoder's row. That is the baseline with those norms moved
into the encoder, and gradients flow through them.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.straightforward_sae import DenseTopK
from torch.func import functional_call

GOLDEN = Path(__file__).with_name("sae_family_training.npz")
NAMES = ["W_enc", "b_enc", "W_dec", "b_dec"]


@pytest.fixture(scope="module")
def arrays():
    with np.load(GOLDEN) as loaded:
        return {name: torch.from_numpy(loaded[name]) for name in loaded if name[:2] != "ga"}


def auxiliary(x, out, moved, dead):
    """The loss of dead latents as SAELens has it, of the 5 largest of 10 / 2."""
    u = (x - moved["b_dec"]) @ moved["W_enc"] + moved["b_enc"]
    found = torch.where(dead, u, -torch.inf).topk(5, dim=1)
    z = torch.zeros_like(u).scatter(1, found.indices, found.values)
    return (z @ moved["W_dec"] - (x - out).detach()).square().sum(1).mean() / 32


def test_output_loss_and_gradients(arrays):
    leaves = {name: arrays[name].clone().requires_grad_() for name in NAMES}
    norm = leaves["W_dec"].norm(dim=1)
    moved = {
        "W_enc": leaves["W_enc"] * norm,
        "b_enc": leaves["b_enc"] * norm,
        "W_dec": leaves["W_dec"] / norm[:, None],
        "b_dec": leaves["b_dec"],
    }
    x, dead = arrays["x"], arrays["dead_mask"].bool()
    out = functional_call(DenseTopK(10, 32, 4).double(), moved, x)
    loss = (x - out).square().sum(1).mean()
    assert torch.allclose(out, arrays["topk_sae_out"], atol=1e-9)
    assert torch.allclose(loss, arrays["topk_loss_mse_loss"], atol=1e-9)
    total = loss + auxiliary(x, out, moved, dead)
    assert torch.allclose(total, arrays["topk_loss"], atol=1e-9)
    found = torch.autograd.grad(total, list(leaves.values()))
    for name, gradient in zip(NAMES, found, strict=True):
        assert torch.allclose(gradient, arrays[f"topk_grad_{name}"], atol=1e-9), name
