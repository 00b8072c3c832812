"""What an iso-FLOP transformation did, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sparsecraft.core.iso_flop import rigl_step_flops


@dataclass(frozen=True, kw_only=True)
class IsoFlopReport:
    """Sizes, sparsities and costs before and after.

    Args:
        family: "wide", "parallel", "factorized", "doped" or "wide_factorized".
        asked: The sparsity that fixed the sizes.
        sparsity: The sparsity to train with, at which profiled FLOPs equal the budget.
        allocation: How it is shared between the layers.
        targets: Names of the parameters to make sparse.
        densities: Parameter name to the fraction that is kept.
        budget: Forward FLOPs of the dense model on the example input.
        flops: Effective forward FLOPs of the transformed model at `sparsity`.
        flops_as_asked: The same at `asked`, before it was solved anew.
        kernel_flops: Forward FLOPs of the transformed model without its mask.
        parameters: Number of parameters before and after, zeros included.
        sizes: What grew: group of units or layer to (size before, size after); ranks and branches
            have 0 and 1 before.
        skipped: Layer name to why it is not transformed.
        notes: What is worth knowing besides.
    """

    family: str
    asked: float
    sparsity: float
    allocation: str
    targets: tuple[str, ...]
    densities: Mapping[str, float]
    budget: int
    flops: int
    flops_as_asked: int
    kernel_flops: int
    parameters: tuple[int, int]
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def error(self) -> float:
        """Relative difference of the effective FLOPs from the budget."""
        return self.flops / self.budget - 1

    @property
    def error_as_asked(self) -> float:
        """The same at the sparsity asked: rounded sizes, and layers that stay dense but grew."""
        return self.flops_as_asked / self.budget - 1

    @property
    def options(self) -> dict[str, Any]:
        """Returns the keyword arguments for `Sparsifier(model, "rigl", **options, ...)`."""
        return {
            "sparsity": self.sparsity,
            "allocation": self.allocation,
            "targets": list(self.targets),
        }

    def to_json(self) -> dict[str, Any]:
        """Returns plain values from which `from_json` makes the report again."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> IsoFlopReport:
        """Returns the report that `to_json` described, also after a turn through a file."""
        changed = {
            "targets": tuple(values["targets"]),
            "parameters": tuple(values["parameters"]),
            "sizes": {name: tuple(pair) for name, pair in values["sizes"].items()},
            "notes": tuple(values["notes"]),
        }
        return cls(**{**values, **changed})

    def training_step_flops(self, every: int = 100) -> float:
        """Returns the mean FLOPs of a RigL step on the example input, dense gradients included.

        The dense model's step costs three times the budget; RigL's update steps take the gradient
        of the *larger* model, so that training is not quite iso-FLOP.

        Args:
            every: Steps between two updates of the mask.
        """
        return rigl_step_flops(self.flops, self.kernel_flops, every)

    def __str__(self) -> str:
        lines = [
            f"Sparse-IFT, {self.family}: sparsity {self.asked:g} asked, {self.sparsity:.4f} solved",
            f"forward FLOPs {self.flops:,} against {self.budget:,} dense ({self.error:+.2%}; "
            f"{self.error_as_asked:+.2%} as asked); {self.kernel_flops:,} without the mask",
            f"parameters {self.parameters[0]:,} -> {self.parameters[1]:,}, zeros included",
            *(f"{name}: {old} -> {new}" for name, (old, new) in self.sizes.items()),
            *(f"{name}: not transformed ({why})" for name, why in self.skipped.items()),
            *self.notes,
        ]
        return "\n".join(lines)
