"""Small pre-norm transformers whose MLPs are ReLU MLPs of any width, with or without top-k.

Each parameter is drawn from its own stream of the seed, so that networks of one shape start alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from sparsecraft.core.seeds import generator
from sparsecraft.lab.claims.digits import CLASSES
from sparsecraft.lab.claims.source_bytes import BYTES

HEADS = 2
PATCH = 2
SIDE = 8

MakeMLP = Callable[[int], nn.Module]
"""Returns the MLP of a block from the width of the hidden state."""


class ReluBlock(nn.Module):
    """Attention and an MLP, each after a norm and beside a residual."""

    def __init__(self, width: int, mlp: nn.Module, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        """Returns the hidden states (batch, tokens, width) after this block."""
        x = x + self.o(self._attend(self.norm1(x)))
        return x + self.mlp(self.norm2(x))

    def _attend(self, x: Tensor) -> Tensor:
        heads = (*x.shape[:2], HEADS, -1)
        q, k, v = (layer(x).view(heads).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return mixed.transpose(1, 2).flatten(2)


class ReluDecoder(nn.Module):
    """Bytes (batch, time) to logits (batch, time, 256) of the next one."""

    def __init__(self, layers: int, width: int, context: int, mlp: MakeMLP) -> None:
        super().__init__()
        self.context = context
        self.bytes = nn.Embedding(BYTES, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(
            ReluBlock(width, mlp(width), causal=True) for _ in range(layers)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, BYTES)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Returns the logits of the byte after each one."""
        x = self.bytes(input_ids) + self.positions.weight[: input_ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class PatchClassifier(nn.Module):
    """Digits (n, 1, 8, 8) in [0, 1] as 16 patches to logits (n, 10)."""

    def __init__(self, layers: int, width: int, mlp: MakeMLP) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, PATCH, stride=PATCH)
        self.positions = nn.Embedding((SIDE // PATCH) ** 2, width)
        self.blocks = nn.ModuleList(
            ReluBlock(width, mlp(width), causal=False) for _ in range(layers)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits."""
        x = self.patches(2 * images - 1).flatten(2).transpose(1, 2) + self.positions.weight
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x.mean(1)))


def initialise(model: nn.Module, seed: int) -> None:
    """Draws the parameters: matrices of variance 1 / inputs, embeddings of 0.1, biases zero.

    Matrices that write to the residual stream are divided by sqrt(2 layers).
    """
    blocks = len(getattr(model, "blocks", ()))
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            continue
        deviation = parameter[0].numel() ** -0.5
        if name.startswith(("bytes", "positions")):
            deviation = 0.1
        elif name.endswith(("o.weight", "second.weight")) and blocks:
            deviation /= math.sqrt(2 * blocks)
        nn.init.normal_(parameter, std=deviation, generator=generator(seed, "initial", name))
