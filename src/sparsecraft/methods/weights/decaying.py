"""What CAST and AST share: masked weights train on, are drawn to zero, and a teacher helps.

The mask keeps the largest weights and is renewed every few steps; the optimiser AdamS asks the
method for the pull on all others. The dense model from before the training, or another one,
teaches. The papers weigh the task's loss by 1 - share and the teacher's by share; here the
caller's loss is there already, with weight 1, so that everything is 1 / (1 - share) times as
large, the strength of the pull included. Adam takes the same steps.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from sparsecraft.core.adams import Pull
from sparsecraft.core.distillation import counted_tokens, divergence, relative_error
from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.kinds import Clock, InTraining, Layers, Tensors, TrainedLayer, WeightMethod
from sparsecraft.core.patterns import NM, Pattern
from sparsecraft.model.adams import AdamS

INNER = ("hidden", "attention")
"""What of a teacher's inside may be taught, by the setting that weighs it."""


@dataclass(frozen=True, kw_only=True)
class Decaying(InTraining, WeightMethod):
    """Draws all but the largest weights to zero while all of them train.

    Args:
        pattern: Which shapes of zeros are allowed.
        mask_every: Steps from one renewal of the mask to the next; 0 keeps the first mask.
        distillation: Share of the teacher's divergence in the whole loss, in [0, 1); 0 trains
            without a teacher.
        temperature: Divides the logits of teacher and student.
        hidden: Weight of the relative error of the blocks' hidden states against the teacher's,
            on the scale of the task's loss having the share 1 - distillation.
        attention: The same of the attention maps.
    """

    masked_weights: ClassVar[Literal["frozen", "live"]] = "live"
    optimizer_type = AdamS

    pattern: Pattern = field(default_factory=NM)
    mask_every: int = 10
    distillation: float = 0.0
    temperature: float = 1.0
    hidden: float = 0.0
    attention: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask_every < 0:
            raise InvalidValue(
                f"mask_every={self.mask_every} is not allowed: give the steps between two "
                "renewals of the mask, or 0 to keep the first one"
            )
        if not 0 <= self.distillation < 1:
            raise InvalidValue(
                f"distillation={self.distillation!r} is not allowed: it is the teacher's share of "
                "the loss, in [0, 1); the task's loss has the rest"
            )
        if not self.temperature > 0:
            raise InvalidValue(f"temperature={self.temperature!r} is not allowed: give more than 0")
        for name in INNER:
            weight = getattr(self, name)
            if not weight >= 0:
                raise InvalidValue(f"{name}={weight!r} is not allowed: give a weight of at least 0")

    @property
    def captures(self) -> tuple[str, ...]:  # type: ignore[override]
        """What the loss needs of the forward pass; nothing without a teacher."""
        inner = tuple(name for name in INNER if getattr(self, name))
        return ("logits", "teacher", *inner) if self.distillation or inner else ()

    @property
    def loss_scale(self) -> float:
        """How many times as large as the papers' loss the whole loss is."""
        return 1 / (1 - self.distillation)

    @abstractmethod
    def pull(self, layers: Layers, clock: Clock) -> Pull:
        """Returns what draws masked weights to zero in this step."""

    def begin(self, weight: Tensor, layer: TrainedLayer, clock: Clock) -> Tensor:
        """Returns the weight as it is; the first mask is made of it where there is none yet."""
        if layer.mask is None:
            grouped = isinstance(self.pattern, NM)  # along the input channels of a convolution
            inputs = weight.shape[1] if grouped else weight[0].numel()
            self.pattern.check((weight.shape[0], inputs), layer.name)
            layer.mask = self.largest(weight)
        return weight

    def loss(self, captured: Mapping[str, Any], weights: Tensors, clock: Clock) -> Tensor | None:
        """Returns the teacher's part; see the module for its scale."""
        if not captured:
            return None
        parts = []
        if self.distillation:
            logits, teacher = captured["logits"], captured["teacher"]
            tokens = counted_tokens(captured["inputs"], logits)
            divergent = divergence(logits, teacher, self.temperature, tokens)
            parts.append(self.distillation * divergent)
        for name in INNER:
            if weight := getattr(self, name):
                error = relative_error(captured[name], captured[f"teacher {name}"])
                parts.append(weight * error)
        return self.loss_scale * torch.stack(parts).sum()

    def due(self, clock: Clock) -> bool:
        """Returns whether the coming step has a new mask; the mask of the last one stays."""
        if not self.mask_every or clock.done == clock.total:
            return False
        return clock.done % self.mask_every == 0

    def update_masks(
        self, weights: Tensors, gradients: Tensors, layers: Layers, clock: Clock
    ) -> Tensors:
        """Returns the masks of the largest weights."""
        return {name: self.largest(weight) for name, weight in weights.items()}

    def largest(self, weight: Tensor) -> Tensor:
        """Returns the mask that keeps the largest weights that the pattern allows."""
        return self.pattern.tensor_mask(weight.detach().abs(), self.density)

    def remarks(self, weights: Tensors, layers: Layers, clock: Clock) -> Iterator[str]:
        """Yields what the user should know about the finished training.

        Args:
            weights: The raw weights, before the mask is applied.
            layers: With their masks.
            clock: Where the training stands.
        """
        yield from ()
