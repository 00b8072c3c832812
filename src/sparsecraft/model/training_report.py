"""What became of the weights while they trained: densities over time, and what was achieved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from sparsecraft.core import catalog
from sparsecraft.core.kinds import InTraining
from sparsecraft.core.mask import Mask
from sparsecraft.model.targets import Targets


@dataclass(frozen=True)
class Event:
    """A step after which layers compute with another share of their weights, or a costly one.

    Args:
        step: Steps finished; 0 is the start.
        densities: Share of its weights that each layer computes with from here on, by target.
        changed: Entries whose mask changed.
        dense_gradient: Whether this step took the gradient of pruned weights too.
    """

    step: int
    densities: Mapping[str, float]
    changed: int = 0
    dense_gradient: bool = False

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values."""
        return {
            "step": self.step,
            "densities": dict(self.densities),
            "changed": self.changed,
            "dense_gradient": self.dense_gradient,
        }


@dataclass(frozen=True, kw_only=True)
class TrainingReport:
    """The outcome of a training with a Sparsifier.

    Args:
        model: The finished model: the trained one itself, or what the method's surgery made of it.
        method: The method as it was used.
        mask: What was kept, by parameter name; empty if nothing was masked.
        targets: The targets and the table of all parameters.
        steps: Optimiser steps taken, and planned.
        history: Densities over the training.
        ever_active: Share of each target's weights that was active at some step (ITOP rate).
        always_active: Share that was active at every step.
        form: "plain" or "augmented".
        notes: Everything that did not go as asked; empty if all did.
    """

    model: nn.Module
    method: InTraining
    mask: Mask
    targets: Targets
    steps: tuple[int, int]
    history: tuple[Event, ...]
    ever_active: Mapping[str, float]
    always_active: Mapping[str, float]
    form: str = "plain"
    notes: tuple[str, ...] = ()

    @property
    def asked(self) -> float | None:
        """Sparsity asked of the targets, None where the method has no such setting."""
        density = getattr(self.method, "density", None)
        return None if density is None else 1.0 - density

    @property
    def sparsity(self) -> float:
        """Sparsity achieved over the targeted weights; unmasked targets count as dense."""
        total = self.targets.numel
        return (self.mask.numel - self.mask.kept) / total if total else 0.0

    @property
    def itop(self) -> float:
        """Share of all targeted weights that was active at some step.

        Reference:
            Liu et al., 2021, arXiv 2102.02887, in-time over-parameterisation rate R_s.
        """
        sizes = {target.name: target.numel for target in self.targets}
        active = sum(self.ever_active.get(name, 1.0) * size for name, size in sizes.items())
        return active / sum(sizes.values())

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values, without model and mask."""
        return {
            "method": catalog.describe(self.method),
            "asked": self.asked,
            "sparsity": self.sparsity,
            "densities": self.mask.densities,
            "parameters": self.targets.table(),
            "steps": list(self.steps),
            "history": [event.to_json() for event in self.history],
            "itop": self.itop,
            "form": self.form,
            "notes": list(self.notes),
        }
