"""What a pruning says of itself: asked and achieved, layer by layer, and all that was left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sparsecraft.core import catalog
from sparsecraft.core.kinds import WeightMethod
from sparsecraft.core.mask import Mask
from sparsecraft.core.patterns import Unstructured
from sparsecraft.model.targets import Target, Targets


@dataclass(frozen=True)
class LayerReport:
    """What was asked of a layer and what it got.

    Args:
        name: Target name.
        shape: (outputs, inputs, *kernel).
        numel: Number of weights.
        asked: Fraction to keep, None where all layers share one.
        achieved: Fraction kept.
        facts: What the method reports of it, by what it is.
    """

    name: str
    shape: tuple[int, ...]
    numel: int
    asked: float | None
    achieved: float
    facts: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values; densities are fractions kept."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "numel": self.numel,
            "asked": self.asked,
            "achieved": self.achieved,
            **({"facts": dict(self.facts)} if self.facts else {}),
        }


@dataclass(frozen=True, kw_only=True)
class PruneSummary:
    """What a pruning did, without the masks themselves.

    Args:
        method: The method as it was used.
        rows: One line for each target, with asked and achieved density.
        targets: The targets and the table of all parameters.
        seconds: Wall time.
        seed: The run's seed.
        calibration_tokens: How many were looked at.
        notes: Everything that did not go as asked, in plain words; empty if all did.
    """

    method: WeightMethod
    rows: tuple[LayerReport, ...]
    targets: Targets
    seconds: float
    seed: int
    calibration_tokens: int = 0
    notes: tuple[str, ...] = ()

    @property
    def asked(self) -> float:
        """Sparsity asked of the targets together."""
        return 1.0 - self.method.density

    @property
    def sparsity(self) -> float:
        """Sparsity achieved over the targeted weights."""
        return 1.0 - self.kept / sum(row.numel for row in self.rows)

    @property
    def kept(self) -> float:
        """Number of targeted weights that were kept."""
        return sum(row.achieved * row.numel for row in self.rows)

    @property
    def skipped(self) -> list[dict[str, object]]:
        """The parameters that were not targeted, with the reason."""
        return [row for row in self.targets.table() if not row["targeted"]]

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values."""
        return {
            "method": catalog.describe(self.method),
            "seed": self.seed,
            "asked": self.asked,
            "sparsity": self.sparsity,
            "layers": [row.to_json() for row in self.rows],
            "parameters": self.targets.table(),
            "calibration_tokens": self.calibration_tokens,
            "seconds": self.seconds,
            "notes": list(self.notes),
        }


@dataclass(frozen=True, kw_only=True)
class PruneReport(PruneSummary):
    """The outcome of a pruning in memory.

    Args:
        mask: What was kept, by parameter name.
    """

    mask: Mask


def layer_report(
    target: Target, keep: Tensor, asked: float | None, facts: Mapping[str, float] | None = None
) -> LayerReport:
    """Returns the line of a target.

    Args:
        target: The target.
        keep: Its mask, bool (outputs, inputs).
        asked: The density it was given, None where all share one.
        facts: What the method reports of it.
    """
    achieved = int(keep.sum()) / keep.numel()
    return LayerReport(target.name, target.shape, keep.numel(), asked, achieved, facts or {})


def budget_notes(report: PruneSummary) -> tuple[str, ...]:
    """Returns a note where the sparsity missed what was asked by more than rounding, or nothing."""
    total = sum(row.numel for row in report.rows)
    by_row = isinstance(report.method.pattern, Unstructured) and report.method.pattern.per == "row"
    pieces = sum(row.shape[0] if by_row else 1 for row in report.rows)
    slack = max(pieces, 1) / total + 1e-9
    if abs(report.sparsity - report.asked) <= slack:
        return ()
    return (
        f"asked sparsity {report.asked:.4f}, achieved {report.sparsity:.4f} "
        f"over {total} targeted weights",
    )
