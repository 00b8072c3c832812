"""What a task is: data, a model and a metric behind one small interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue, NonFinite

Split = Literal["validation", "test"]
Kind = Literal["embedding", "classification", "causal-lm"]
Batch = dict[str, Tensor]
Progress = Callable[[int, int], None]
"""Called with (examples done, examples in all) while a model is evaluated."""

SPLITS: tuple[Split, Split] = ("validation", "test")


@dataclass(frozen=True)
class Scores:
    """What one evaluation found.

    Args:
        values: (examples,) each example's contribution, always in the same order of examples,
            so that two models can be compared example by example.
        metric: The task's number, `task.aggregate(values)`.
        extra: Further numbers by name, such as the mean cosine to the dense embeddings.
    """

    values: np.ndarray
    metric: float
    extra: Mapping[str, float] = field(default_factory=dict)


class Task(ABC):
    """Real data, a dense model and a metric, with disjoint splits.

    Calibration and training draw from data that neither validation nor test contain.
    """

    name: str
    """The name under which the task is found."""
    metric: str
    """What `Scores.metric` is, for example "nDCG@10"."""
    higher_is_better: bool
    kind: Kind
    description: str
    """Two sentences for the report: the data with sizes, and the splits."""
    fingerprint: str
    """A hash of data and settings: two tasks with one fingerprint give comparable scores."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that belongs to the model, or None where there is no text."""
        return None

    @abstractmethod
    def load_model(self) -> nn.Module:
        """Returns a fresh dense model: float32, in evaluation mode, on the CPU."""

    def save_extras(self, directory: Path) -> None:  # noqa: B027 - most tasks have none
        """Writes what a model directory needs beside weights and config, such as a tokenizer."""

    @abstractmethod
    def calibration(self, max_tokens: int, seed: int) -> list[Batch]:
        """Returns inputs for `model(**batch)`, disjoint from validation and test.

        Args:
            max_tokens: At most this many tokens (or examples, where there is no text) in all.
            seed: Chooses the sample.
        """

    @abstractmethod
    def training_batches(self, batch_size: int, seed: int) -> Iterator[Batch]:
        """Yields batches without end, disjoint from validation and test.

        Supervised tasks include "labels".
        """

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns the scalar loss of the task on a training batch."""

    @abstractmethod
    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns what distillation matches: pooled embeddings or logits, with gradient."""

    @abstractmethod
    def example_input(self, batch_size: int) -> Batch:
        """Returns a realistic input of this many examples, for measuring latency."""

    @abstractmethod
    def evaluate(self, model: nn.Module, split: Split, progress: Progress | None = None) -> Scores:
        """Returns the model's scores on one split; the model is left as it was."""

    def evaluate_both(
        self, model: nn.Module, progress: Progress | None = None
    ) -> dict[Split, Scores]:
        """Returns the scores on validation and test, sharing work where the task can."""
        return {split: self.evaluate(model, split, progress) for split in SPLITS}

    def aggregate(self, values: np.ndarray) -> float:
        """Returns the task's number for these contributions: their mean."""
        return float(np.mean(values))

    def scores(self, values: np.ndarray, extra: Mapping[str, float] | None = None) -> Scores:
        """Returns `Scores` of these contributions.

        Raises:
            NonFinite: If a contribution is NaN or infinite.
        """
        check_finite(torch.from_numpy(values), self.name)
        return Scores(values, self.aggregate(values), dict(extra or {}))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts the model into evaluation mode without gradients, and restores its mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes:
            module.training = training


def check_split(split: str) -> None:
    """Raises unless the split is one that is scored.

    Raises:
        InvalidValue: Naming the two splits.
    """
    if split not in SPLITS:
        raise InvalidValue(f"split={split!r} is not scored; use 'validation' or 'test'.")


def check_finite(found: Tensor, name: str) -> None:
    """Raises unless every number that a model gave is finite.

    Args:
        found: Embeddings, logits or contributions of examples.
        name: Of the task.

    Raises:
        NonFinite: With how many are not.
    """
    bad = int((~torch.isfinite(found)).sum())
    if bad:
        raise NonFinite(
            f"{bad} of {found.numel()} numbers that the model gave on {name} are NaN or infinite: "
            "it is numerically broken. Check its weights with torch.isfinite."
        )


def check_positive(**numbers: int) -> None:
    """Raises unless every given number is a whole number of at least one.

    Raises:
        InvalidValue: Naming the first number that is not.
    """
    for name, value in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InvalidValue(f"{name}={value!r} must be a whole number of at least 1.")


def logits_of(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Returns the logits of a plain network or of a Hugging Face model."""
    output = model(**inputs)
    return output if isinstance(output, Tensor) else output.logits


def inputs_of(batch: Mapping[str, Tensor]) -> Batch:
    """Returns the batch without its labels: what the model is called with."""
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def to_device(batch: Mapping[str, Tensor], model: nn.Module) -> Batch:
    """Returns the batch on the model's device, real numbers in the model's own precision."""
    first = next(chain(model.parameters(), model.buffers()))
    return {
        name: tensor.to(first.device, first.dtype if tensor.is_floating_point() else None)
        for name, tensor in batch.items()
    }
