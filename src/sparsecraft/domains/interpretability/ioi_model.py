"""A small decoder that learns who receives, to near perfection in a minute on one core."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecraft.core.errors import NonFinite
from sparsecraft.core.seeds import generator
from sparsecraft.domains.interpretability.ioi import LENGTH, NAMES, WORDS, Prompts, prompts


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """The decoder that learns the task.

    Args:
        layers: Blocks.
        width: Of the residual stream.
        heads: Of the attention; the node of a head has width / heads entries.
    """

    layers: int = 2
    width: int = 64
    heads: int = 4


class IOIModel(nn.Module):
    """A pre-norm decoder over `WORDS`: (rows, LENGTH) tokens to (rows, names) logits of the next.

    Hook points of a block: `z` gives what the heads bring, side by side, before they are joined, so
    that single heads can be taken; `middle` the stream between attention and feed-forward layer.

    Args:
        size: Of the decoder.
        seed: Of the first weights.
    """

    def __init__(self, size: ModelSize, seed: int) -> None:
        super().__init__()
        self.words = nn.Embedding(len(WORDS), size.width)
        self.positions = nn.Embedding(LENGTH, size.width)
        self.blocks = nn.ModuleList(_Block(size) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, len(NAMES), bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                deviation = 0.5 if "blocks" not in name else parameter.shape[1] ** -0.5
                draw = generator(seed, "ioi", "model", name)
                nn.init.normal_(parameter, std=deviation, generator=draw)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns (rows, names), the logits of the name that comes next."""
        x = self.words(tokens) + self.positions.weight
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, -1]))


class _Block(nn.Module):
    def __init__(self, size: ModelSize) -> None:
        super().__init__()
        self.heads = size.heads
        self.norm1, self.norm2 = nn.LayerNorm(size.width), nn.LayerNorm(size.width)
        self.qkv = nn.Linear(size.width, 3 * size.width)
        self.z = nn.Identity()
        self.joined = nn.Linear(size.width, size.width)
        self.middle = nn.Identity()
        self.up = nn.Linear(size.width, 4 * size.width)
        self.down = nn.Linear(4 * size.width, size.width)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        parts = self.qkv(self.norm1(x)).view(rows, length, 3, self.heads, -1).unbind(2)
        q, k, v = (part.transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = self.middle(x + self.joined(self.z(mixed.transpose(1, 2).reshape(rows, length, width))))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def train(
    model: IOIModel,
    *,
    seed: int,
    steps: int = 1500,
    batch: int = 256,
    rate: float = 3e-3,
    names: Sequence[int] | Tensor | None = None,
) -> None:
    """Trains the model in place to say the io, by AdamW with a linear warm-up and decay.

    Args:
        model: The decoder.
        seed: Of the prompts.
        steps: Optimiser steps.
        batch: Prompts in a step.
        rate: Learning rate at its peak.
        names: Which names stand in the prompts; by default all.

    Raises:
        NonFinite: If the loss becomes NaN or infinite.
    """
    allowed = None if names is None else torch.as_tensor(names)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    warm_up = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, (steps - step) / (steps - warm_up + 1))
    )
    model.train()
    for step in range(steps):
        given = prompts(batch, seed, allowed, f"training {step}")
        loss = F.cross_entropy(model(given.tokens), given.io)
        if not torch.isfinite(loss):
            raise NonFinite(f"the training loss is {loss.item()} at step {step}")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, given: Prompts) -> float:
    """Returns the share of prompts that the model continues with the io."""
    return float((model(given.tokens).argmax(1) == given.io).double().mean())
