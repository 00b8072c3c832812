"""Methods that prune all matrices together."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from sparsecraft.core.kinds.base import Batch, Pruned, WeightMethod


class ModelContext(Protocol):
    """What a ModelWide method may ask of the model; the user's model stays untouched."""

    seed: int

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Layer shapes (out, in, *kernel) by target name, in model order."""

    def generator(self, *labels: object) -> torch.Generator:
        """Returns the random stream of these labels."""

    def batches(self) -> Sequence[Batch]:
        """Returns the calibration batches; raises MissingStatistic if there are none."""

    def loss(
        self, weights: Mapping[str, Tensor], batch: Batch, *, temperature: float = 1
    ) -> Tensor:
        """Returns the loss with these weights in place of the model's, differentiable in them.

        Args:
            weights: Matrices by target name.
            batch: Inputs and labels.
            temperature: Divides the logits before the loss.
        """

    def flow(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Returns the summed output for an input of ones, all other parameters made positive."""


@dataclass(frozen=True, kw_only=True)
class ModelWide(WeightMethod):
    """Prunes all matrices together: scores are compared across layers."""

    needs_batches: ClassVar[bool] = False

    @abstractmethod
    def prune(self, weights: Mapping[str, Tensor], context: ModelContext) -> dict[str, Pruned]:
        """Returns every matrix pruned.

        Args:
            weights: (outputs, inputs) by target name, in model order.
            context: Losses and gradients on a copy of the model.
        """

    def globally(
        self, weights: Mapping[str, Tensor], scores: Mapping[str, Tensor]
    ) -> dict[str, Pruned]:
        """Returns the weights pruned to the highest scores over all of them together."""
        masks = self.pattern.global_masks(list(scores.values()), self.density)
        return {
            name: Pruned.keeping(weights[name], mask)
            for name, mask in zip(scores, masks, strict=True)
        }
