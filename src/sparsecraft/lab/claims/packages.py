"""Which package of the standard library a few tokens come from: a task to fine-tune on.

Each package's source is cut into windows of 32 tokens, about 96 characters. Runs of 20 windows go
whole to training, validation or test, so that neighbours in a file are mostly on one side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.mask import Mask
from sparsecraft.core.seeds import generator
from sparsecraft.lab.tasks.language import CausalTask, cut, encode, without
from sparsecraft.lab.tasks.stdlib_docs import module_name, read_source, source_files
from sparsecraft.model.frozen import hold_mask

PACKAGES = (
    "asyncio", "email", "http", "importlib", "logging", "multiprocessing", "unittest", "xml",
)  # fmt: skip
TOKENS = 32
RUN = 20
# Runs of each package in training, validation and test.
RUNS = (40, 4, 16)


@dataclass(frozen=True)
class Part:
    """Windows (n, tokens) of token ids, and the index of their package (n,)."""

    windows: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Packages:
    """The three parts, disjoint and balanced."""

    train: Part
    validation: Part
    test: Part


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How the classifier is fine-tuned: AdamW without decay, falling linearly to zero.

    Args:
        steps: Optimiser steps.
        batch: Windows in a step.
        rate: Learning rate at the start.
    """

    steps: int = 300
    batch: int = 16
    rate: float = 2e-3


class Classifier(nn.Module):
    """A language model's body with a linear layer on its mean hidden state.

    Args:
        body: A Hugging Face model without its head.
        seed: Of the new layer.
    """

    def __init__(self, body: nn.Module, seed: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(int(body.config.hidden_size), len(PACKAGES))  # type: ignore[union-attr,arg-type]
        nn.init.normal_(self.head.weight, std=0.02, generator=generator(seed, "head"))
        nn.init.zeros_(self.head.bias)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Returns (windows, packages) logits of (windows, tokens) ids."""
        return self.head(self.body(input_ids=input_ids).last_hidden_state.mean(1))


def classifier(task: CausalTask, seed: int) -> Classifier:
    """Returns the task's pre-trained body with a new head."""
    return Classifier(task.load_model().base_model, seed)  # type: ignore[arg-type]


def load_packages(task: CausalTask, runs: Sequence[int] = RUNS) -> Packages:
    """Returns the windows, in the task's tokens.

    Args:
        task: Whose tokenizer is used.
        runs: How many runs of each package go to training, validation and test.

    Raises:
        InvalidValue: If a package is missing or too small in this Python.
    """
    drawn = [_runs(task, name, sum(runs)) for name in PACKAGES]
    ends = list(accumulate(runs, initial=0))
    parts = []
    for start, end in pairwise(ends):
        windows = [each[start:end].flatten(0, 1) for each in drawn]
        labels = torch.arange(len(PACKAGES)).repeat_interleave((end - start) * RUN)
        parts.append(Part(torch.cat(windows), labels))
    return Packages(*parts)


def fine_tune(
    model: Classifier, data: Part, mask: Mask | None, tuning: Tuning, *, seed: int, branch: str
) -> None:
    """Trains body and head in place; pruned weights stay zero.

    Args:
        model: The classifier.
        data: What to train on.
        mask: What to hold at zero, or None.
        tuning: How long and how fast.
        seed: Of the order of the windows, the same for every arm.
        branch: Of the order too, where a recipe trains several times.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=tuning.rate, weight_decay=0.0)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / tuning.steps)
    held = hold_mask(model, mask, optimizer) if mask is not None else None
    order = generator(seed, "order", branch)
    waiting = torch.empty(0, dtype=torch.long)
    model.train()
    for _ in range(tuning.steps):
        if len(waiting) < tuning.batch:
            waiting = torch.randperm(len(data.labels), generator=order)
        index, waiting = waiting[: tuning.batch], waiting[tuning.batch :]
        optimizer.zero_grad()
        F.cross_entropy(model(data.windows[index]), data.labels[index]).backward()
        optimizer.step()
        decay.step()
    if held is not None:
        held.remove()


@torch.no_grad()
def accuracy(model: Classifier, data: Part) -> float:
    """Returns the fraction of windows whose package the model names."""
    model.eval()
    parts = zip(data.windows.split(256), data.labels.split(256), strict=True)
    return sum(int((model(x).argmax(1) == y).sum()) for x, y in parts) / len(data.labels)


def _runs(task: CausalTask, package: str, needed: int) -> Tensor:
    """Returns (needed, windows in a run, tokens) of a package, in one fixed order."""
    texts = [
        read_source(path) for path in source_files() if module_name(path).split(".")[0] == package
    ]
    windows = without(cut(encode(task.tokenizer, texts, None), TOKENS))
    runs = windows[: len(windows) // RUN * RUN].view(-1, RUN, TOKENS)
    if len(runs) < needed:
        raise InvalidValue(
            f"package {package!r} of this Python gives {len(runs)} runs of {RUN} windows, but "
            f"{needed} are needed; use a complete Python of version 3.11 or later"
        )
    return runs[torch.randperm(len(runs), generator=generator(0, "packages", package))[:needed]]
