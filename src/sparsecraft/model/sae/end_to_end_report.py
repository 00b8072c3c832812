"""How a training inside the model went: its predictions before and after."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Spliced:
    """What is left of a model's predictions with an autoencoder in it, in nats a token.

    Args:
        divergence: KL from the predictions of the model as it is.
        loss: Cross-entropy of the next token.
        clean: The same of the model as it is.
        ablated: The same with zeros for the activations.
        fvu: Fraction of variance unexplained.
        l0: Entries of a code that are not zero, on average.
    """

    divergence: float
    loss: float
    clean: float
    ablated: float
    fvu: float
    l0: float

    @property
    def recovered(self) -> float:
        """(ablated - loss) / (ablated - clean), NaN where the ablation changes nothing."""
        gap = self.ablated - self.clean
        return math.nan if abs(gap) < 1e-7 else (self.ablated - self.loss) / gap


@dataclass(frozen=True)
class EndToEndReport:
    """How a fine-tuning went.

    Args:
        steps: Of the optimiser.
        tokens: Whose activations were replaced in all steps.
        before: Measured before it.
        after: Measured after it, on the same contexts.
        measured_on: "held-out contexts", or "training contexts".
        contexts: How many these are.
        history: The loss of each step by its parts, as they were before the step.
    """

    steps: int
    tokens: int
    before: Spliced
    after: Spliced
    measured_on: str
    contexts: int
    history: list[dict[str, float]]

    def to_json(self) -> dict[str, Any]:
        """Returns all of it as plain values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        a, b = self.before, self.after
        return (
            f"{self.steps} steps, {self.tokens:,} tokens; on {self.contexts:,} {self.measured_on}: "
            f"KL {a.divergence:.4f} to {b.divergence:.4f}, loss recovered {a.recovered:.4f} to "
            f"{b.recovered:.4f}, FVU {a.fvu:.4f} to {b.fvu:.4f}, L0 {a.l0:.1f} to {b.l0:.1f}"
        )
