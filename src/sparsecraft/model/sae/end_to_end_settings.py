"""How an autoencoder is trained inside the model: one frozen description."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.model.sae.training_settings import SAETraining

Loss = Literal["kl", "ce"]
LOSSES: tuple[Loss, ...] = get_args(Loss)


@dataclass(frozen=True, kw_only=True)
class EndToEndTraining:
    """Settings of `fine_tune`.

    Args:
        steps: Of the optimiser.
        batch: Contexts in a step.
        loss: "kl", the divergence of the next token's prediction from that of the model as it is;
            or "ce", the cross-entropy of the next token itself.
        reconstruction: Weight of the fraction of variance unexplained beside it.
        learning_rate: At first, from which it falls linearly to zero; None: a quarter of that of
            `SAETraining`.
        clip: What the norm of all gradients together is clipped to; None: nothing.
        decoder: As of `SAETraining`.
        held_out: Share of the contexts on which the report is measured; 0: on those of the
            training.
        seed: Of the order of contexts and the choice of what is held out.

    Raises:
        InvalidValue: If a number is not allowed.
    """

    steps: int = 500
    batch: int = 8
    loss: Loss = "kl"
    reconstruction: float = 0.0
    learning_rate: float | None = None
    clip: float | None = 1.0
    decoder: Literal["auto", "unit", "free"] = "auto"
    held_out: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise UnknownName("loss", str(self.loss), LOSSES)
        if not 0 <= self.reconstruction < math.inf:
            raise InvalidValue(
                f"reconstruction={self.reconstruction!r} is not allowed: give a number of at least "
                "0 (0 leaves the squared error out)"
            )
        self.settings(d_sae=1)

    def settings(self, d_sae: int) -> SAETraining:
        """Returns the rate, scale and constraint of a dictionary of d_sae latents, checked."""
        rate = SAETraining().peak(d_sae) / 4 if self.learning_rate is None else self.learning_rate
        return SAETraining(
            steps=self.steps,
            batch=self.batch,
            learning_rate=rate,
            warm_up=0,
            decay=1.0,
            clip=self.clip,
            decoder=self.decoder,
            auxiliary=None,
            held_out=self.held_out,
            seed=self.seed,
        )
