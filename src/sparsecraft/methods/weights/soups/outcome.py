"""What the recipe leaves: its candidates, its phases, the last soup."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sparsecraft.core.mask import Mask

Settings = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One retrained copy.

    Args:
        state: Its state dict, recalibrated.
        settings: What its training was given.
        score: On held-out data, higher being better; None where nothing was asked.
    """

    state: dict[str, Tensor]
    settings: Settings
    score: float | None = None


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One cycle of pruning, retraining and averaging.

    Args:
        number: From 1.
        mask: That of every candidate and of the soup.
        candidates: The retrained copies.
        weights: The share of each candidate in the soup; 0 for those that a greedy choice left out.
        state: The soup's state dict, recalibrated.
        score: Of the soup, like those of the candidates.
    """

    number: int
    mask: Mask
    candidates: tuple[Candidate, ...]
    weights: tuple[float, ...]
    state: dict[str, Tensor]
    score: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns everything but the tensors, as plain values."""
        return {
            "phase": self.number,
            "kept": self.mask.kept,
            "density": self.mask.density,
            "candidates": [
                {"settings": dict(each.settings), "score": each.score, "weight": weight}
                for each, weight in zip(self.candidates, self.weights, strict=True)
            ],
            "score": self.score,
        }


@dataclass(frozen=True)
class SoupOutcome:
    """All phases, the last one being the outcome.

    Args:
        phases: In order; each mask is a part of the one before.
    """

    phases: tuple[Phase, ...]

    @property
    def mask(self) -> Mask:
        """The mask of the last phase."""
        return self.phases[-1].mask

    @property
    def state(self) -> dict[str, Tensor]:
        """The state dict of the last soup."""
        return self.phases[-1].state

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """The candidates of the last soup."""
        return self.phases[-1].candidates
