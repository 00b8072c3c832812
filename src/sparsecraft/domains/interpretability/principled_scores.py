"""What the evaluation of paper 34 found: figures by name, the latents of values, and notes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sparsecraft.domains.interpretability.value_latents import ValueLatent


class PrincipledScores(dict[str, float]):
    """Figures by name, with what cannot be said in one number.

    Args:
        figures: Name to value.
        latents: The best latent of every known value.
        notes: What the reader must know before the figures, such as that activations are scaled
            otherwise than those of the training.

    Example:
        >>> scores = PrincipledScores({"sufficiency, autoencoder": 0.9}, notes=("another scale",))
        >>> scores.rows()
        [('NOTE', 'another scale'), ('sufficiency, autoencoder', '0.900')]
    """

    def __init__(
        self,
        figures: Mapping[str, float],
        latents: tuple[ValueLatent, ...] = (),
        notes: tuple[str, ...] = (),
    ) -> None:
        super().__init__(figures)
        self.latents = latents
        self.notes = notes

    def rows(self) -> list[tuple[str, str]]:
        """Returns the table: notes first, then figure and value."""
        notes = [("NOTE", note) for note in self.notes]
        return notes + [(name, _number(value)) for name, value in self.items()]

    def latent_rows(self) -> list[tuple[str, ...]]:
        """Returns the table: attribute, value, its best latent, F1, cosine with the code."""
        return [
            (each.attribute, str(each.value), str(each.latent), f"{each.f1:.3f}",
             f"{each.cosine:.3f}")
            for each in self.latents
        ]  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Returns everything as plain values; a figure that is not defined is None."""
        figures = {k: value if math.isfinite(value) else None for k, value in self.items()}
        latents = [asdict(each) | {"value": str(each.value)} for each in self.latents]
        return {"figures": figures, "latents": latents, "notes": list(self.notes)}


def _number(value: float) -> str:
    return "not defined" if math.isnan(value) else f"{value:.3f}"
