"""How the training of an autoencoder went."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

_OTHERS = ("step", "learning_rate", "active", "dead")


@dataclass
class SAEReport:
    """What `fit` reports; `to_json` gives it as plain values.

    Args:
        steps: Of the training.
        tokens: Rows read, over all ranks.
        seconds: Spent on the steps, over all sessions.
        fvu: Fraction of variance unexplained, on the rows measured.
        l0: Entries of a code that are not zero, on average over the rows measured.
        dead: Share of latents silent for `dead_after` tokens when the training ended.
        dead_after: Tokens.
        measured_rows: How many rows the first two were measured on.
        measured_on: "held-out rows", or "training rows" where none were held out.
        learning_rate: At its peak.
        scale: What inputs were multiplied by in training; it is folded into the weights.
        target_scale: What targets were multiplied by.
        history: Averages between records: step, learning_rate, active (the L0), dead, and each loss
            by its name.
        resumed_from: The step at which this session took up an earlier one, or 0.
        world: Processes that trained together.
        notes: What was done beside what was asked.
    """

    steps: int
    tokens: int
    seconds: float
    fvu: float
    l0: float
    dead: float
    dead_after: int
    measured_rows: int
    measured_on: str
    learning_rate: float
    scale: float
    target_scale: float
    history: list[dict[str, float]] = field(default_factory=list)
    resumed_from: int = 0
    world: int = 1
    notes: list[str] = field(default_factory=list)

    @property
    def losses(self) -> dict[str, float]:
        """The losses of the last record, by name."""
        last = self.history[-1] if self.history else {}
        return {name: value for name, value in last.items() if name not in _OTHERS}

    def to_json(self) -> dict[str, Any]:
        """Returns all of it as plain values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.steps} steps, {self.tokens:,} tokens, {self.seconds:.1f} s; on "
            f"{self.measured_rows:,} {self.measured_on}: FVU {self.fvu:.4f}, L0 {self.l0:.1f}; "
            f"dead {self.dead:.1%}"
        )
