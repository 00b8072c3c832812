"""Causal language models judged by their perplexity over windows of held-out text."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sparsecraft.core.seeds import generator
from sparsecraft.lab.measures.perplexity import WindowScores, cut, score_windows
from sparsecraft.lab.tasks.base import (
    Batch,
    Progress,
    Scores,
    Split,
    Task,
    check_positive,
    check_split,
    inputs_of,
    logits_of,
    to_device,
)

__all__ = ["CausalTask", "Part", "cut", "encode", "next_token_loss", "window_batches", "without"]

Part = Literal["training", "validation", "test"]


class CausalTask(Task):
    """A causal language model on windows of token ids, each scored on its own.

    A window's value is its mean negative log-likelihood in nats over all tokens but the first.
    """

    metric = "perplexity"
    higher_is_better = False
    kind = "causal-lm"
    measures_kl = False
    """Whether `extra` gives the divergence from the dense model, at twice the evaluation time."""

    @property
    @abstractmethod
    def windows(self) -> dict[Part, Tensor]:
        """(windows, context) token ids of training, validation and test; no window is shared."""

    def calibration(self, max_tokens: int, seed: int) -> list[Batch]:
        """Returns training windows, at most `max_tokens` tokens in all, eight to a batch."""
        check_positive(max_tokens=max_tokens)
        windows = self.windows["training"]
        context = min(windows.shape[1], max_tokens)
        draw = generator(seed, self.name, "calibration")
        chosen = torch.randperm(len(windows), generator=draw)[: max_tokens // context]
        return [{"input_ids": part} for part in windows[chosen, :context].split(8)]

    def training_batches(self, batch_size: int, seed: int) -> Iterator[Batch]:
        """Yields shuffled training windows without end; "labels" are the ids themselves."""
        check_positive(batch_size=batch_size)
        yield from window_batches(self.windows["training"], batch_size, seed)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns the mean cross-entropy of the next token."""
        return next_token_loss(model, batch)

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns (windows, tokens, vocabulary) logits."""
        return logits_of(model, to_device(inputs_of(batch), model))

    def example_input(self, batch_size: int) -> Batch:
        """Returns training windows of full length."""
        check_positive(batch_size=batch_size)
        windows = self.windows["training"]
        return {"input_ids": windows[torch.arange(batch_size) % len(windows)]}

    def evaluate(self, model: nn.Module, split: Split, progress: Progress | None = None) -> Scores:
        """Returns the mean negative log-likelihood by window; the metric is their exp(mean)."""
        check_split(split)
        dense = self._dense if self.measures_kl else None
        found = score_windows(model, self.windows[split], dense=dense, progress=progress)
        extra = {"nll": float(found.losses.mean())}
        if found.kl is not None:
            extra["kl"] = found.kl
        return self.scores(found.losses, extra)

    def aggregate(self, values: np.ndarray) -> float:
        """Returns the perplexity, exp of the mean."""
        return WindowScores(values).perplexity

    @cached_property
    def _dense(self) -> nn.Module:
        return self.load_model()


def next_token_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Returns the mean cross-entropy of each token given those before it."""
    moved = to_device(batch, model)
    logits = logits_of(model, inputs_of(moved))[:, :-1]
    return functional.cross_entropy(logits.flatten(0, 1).float(), moved["labels"][:, 1:].flatten())


def window_batches(windows: Tensor, batch_size: int, seed: int) -> Iterator[Batch]:
    """Yields batches of windows without end, each epoch in another order."""
    epoch = 0
    while True:
        order = torch.randperm(len(windows), generator=generator(seed, "windows", epoch))
        for start in range(0, max(1, len(order) - batch_size + 1), batch_size):
            ids = windows[order[start : start + batch_size]]
            yield {"input_ids": ids, "labels": ids.clone()}
        epoch += 1


def without(windows: Tensor, *held_out: Tensor) -> Tensor:
    """Returns the windows, each once, that are in none of the others."""
    seen = {tuple(row) for other in held_out for row in other.tolist()}
    keep = []
    for index, row in enumerate(map(tuple, windows.tolist())):
        if row not in seen:
            keep.append(index)
            seen.add(row)
    return windows[keep]


def encode(tokenizer: Any, texts: list[str], separator: int | None) -> list[int]:
    """Returns the ids of the texts one after another, each followed by the separator."""
    ids: list[int] = []
    for tokens in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
        ids += tokens
        if separator is not None:
            ids.append(separator)
    return ids
