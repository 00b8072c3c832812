"""Python source as bytes and a small decoder: the scale at which language claims are tried.

The text is the running Python's standard library. Whole files are held out: the test files are
fixed, and each seed divides the others anew into training and validation. An evaluation part is
one excerpt of every file in it, so that no long file rules the figure and evaluation stays quick.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue, NonFinite
from sparsecraft.core.seeds import generator
from sparsecraft.lab.tasks.stdlib_docs import module_name, order, read_source, source_files
from sparsecraft.lab.tasks.training import rate as share_of_peak
from sparsecraft.model.sparsifier import Sparsifier

BYTES = 256
HEAD_WIDTH = 32
CONTEXT = 128
BATCH = 16
TEST_FILES, VALIDATION_FILES = 48, 24
EXCERPT = 1024
TRAINING_BYTES = 2**21
WINDOWS_AT_ONCE = 64


@dataclass(frozen=True)
class Source:
    """The three parts, each (bytes,) int64 in [0, 256), from disjoint files."""

    train: Tensor
    validation: Tensor
    test: Tensor


def load_source(seed: int) -> Source:
    """Returns the bytes, with the division into training and validation files of this seed."""
    files = _long_files()
    test, others = files[:TEST_FILES], files[TEST_FILES:]
    shuffled = torch.randperm(len(others), generator=generator(seed, "source", "division")).tolist()
    validation = [others[index] for index in shuffled[:VALIDATION_FILES]]
    train = b"\n".join(others[index] for index in shuffled[VALIDATION_FILES:])
    return Source(_tensor(train[:TRAINING_BYTES]), _excerpts(validation), _excerpts(test))


class ByteModel(nn.Module):
    """A pre-norm decoder over bytes: (batch, time) ids to (batch, time, 256) logits.

    Args:
        layers: Blocks.
        width: Of the hidden state, a multiple of 32, the width of a head.
        context: Longest input, in bytes.
    """

    def __init__(self, layers: int, width: int, context: int = CONTEXT) -> None:
        super().__init__()
        if width % HEAD_WIDTH or width < HEAD_WIDTH:
            raise InvalidValue(f"width={width} is not allowed: give a multiple of {HEAD_WIDTH}")
        self.context = context
        self.bytes = nn.Embedding(BYTES, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, BYTES)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Returns the logits of the byte after each one."""
        time = input_ids.shape[1]
        x = self.bytes(input_ids) + self.positions.weight[:time]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Block(nn.Module):
    """Causal attention, then a GELU feed-forward layer of four times the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the hidden states (batch, time, width) after this block."""
        x = x + self.o(self._attend(self.norm1(x)))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))

    def _attend(self, x: Tensor) -> Tensor:
        heads = (x.shape[0], x.shape[1], -1, HEAD_WIDTH)
        q, k, v = (layer(x).view(heads).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return mixed.transpose(1, 2).flatten(2)


def byte_model(layers: int, width: int, seed: int, context: int = CONTEXT) -> ByteModel:
    """Returns an untrained decoder, each parameter drawn from its own stream of the seed.

    Matrices are normal with variance 1 / inputs, those that write to the residual stream divided
    by sqrt(2 layers); embeddings have a standard deviation of 0.1, biases are zero.
    """
    model = ByteModel(layers, width, context)
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            continue
        deviation = parameter.shape[1] ** -0.5
        if name.startswith(("bytes", "positions")):
            deviation = 0.1
        elif name.endswith(("o.weight", "fc2.weight")):
            deviation /= math.sqrt(2 * layers)
        nn.init.normal_(parameter, std=deviation, generator=generator(seed, "initial", name))
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
    return model


def train(
    model: ByteModel,
    data: Tensor,
    *,
    seed: int,
    steps: int,
    rate: float,
    batch: int = BATCH,
    weight_decay: float = 0.01,
    sparsifier: Sparsifier | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Trains in place on random windows, by AdamW with a warm-up of 5 % and a cosine.

    Args:
        model: The decoder.
        data: (bytes,), for example `load_source(0).train`.
        seed: Of the windows, the same for every arm.
        steps: Optimiser steps.
        rate: Learning rate at its peak.
        batch: Windows in a step.
        weight_decay: Of AdamW.
        sparsifier: Makes the model sparse while it trains, for `steps` steps; it is attached here
            and left to the caller to finalize.
        optimizer: Used in place of AdamW, with the same schedule.

    Raises:
        NonFinite: If the loss becomes NaN or infinite.
    """
    if optimizer is None:
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=weight_decay
        )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share_of_peak(step, steps))
    if sparsifier is not None:
        sparsifier.attach(optimizer)
    draw = generator(seed, "windows")
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        loss = next_byte_loss(model, random_windows(data, model.context, batch, draw))
        if not torch.isfinite(loss):
            raise NonFinite(f"the training loss is {loss.item()} at step {step}")
        (loss if sparsifier is None else loss + sparsifier.loss()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


def next_byte_loss(model: nn.Module, input_ids: Tensor) -> Tensor:
    """Returns the mean cross-entropy in nats of each byte of the windows given those before it."""
    logits = model(input_ids)[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), input_ids[:, 1:].flatten())


@torch.no_grad()
def bits_per_byte(model: ByteModel, tokens: Tensor) -> float:
    """Returns the mean code length of a byte given those before it in its window.

    Args:
        model: The decoder; its mode is left as it was.
        tokens: (bytes,), cut into windows of the model's context; what is left over is dropped.
    """
    training = model.training
    model.eval()
    windows = cut(tokens, model.context)
    total = sum(
        float(next_byte_loss(model, part)) * len(part) for part in windows.split(WINDOWS_AT_ONCE)
    )
    model.train(training)
    return total / len(windows) / math.log(2)


def calibration(data: Tensor, context: int = CONTEXT, windows: int = 64) -> list[dict[str, Tensor]]:
    """Returns batches of windows for `prune` and `Sparsifier`, taken at even distances.

    Args:
        data: (bytes,), of the training part.
        context: Bytes in a window.
        windows: How many, in batches of 16.
    """
    all_windows = cut(data, context)
    chosen = torch.linspace(0, len(all_windows) - 1, windows).round().long()
    return [{"input_ids": ids} for ids in all_windows[chosen].split(16)]


def random_windows(data: Tensor, context: int, count: int, draw: torch.Generator) -> Tensor:
    """Returns (count, context) windows that begin anywhere in the data."""
    begin = torch.randint(len(data) - context + 1, (count, 1), generator=draw)
    return data[begin + torch.arange(context)]


def cut(tokens: Tensor, context: int) -> Tensor:
    """Returns (windows, context) windows without overlap; what is left over is dropped."""
    return tokens[: len(tokens) // context * context].view(-1, context)


def _excerpts(files: Sequence[bytes]) -> Tensor:
    """Returns the middle of each file, one after another."""
    middles = [(len(text) - EXCERPT) // 2 for text in files]
    pieces = zip(files, middles, strict=True)
    return _tensor(b"".join(text[begin : begin + EXCERPT] for text, begin in pieces))


def _tensor(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).long()


@cache
def _long_files() -> tuple[bytes, ...]:
    """Returns the distinct source files of at least two excerpts' length, in a fixed order."""
    paths = sorted(source_files(), key=lambda path: order("source bytes", module_name(path)))
    texts = dict.fromkeys(read_source(path).encode() for path in paths)
    return tuple(text for text in texts if len(text) >= 2 * EXCERPT)
