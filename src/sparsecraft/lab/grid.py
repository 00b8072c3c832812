"""The cells of a comparison: methods x patterns x sparsities x seeds, and the controls.

A method without randomness and without data runs once; a calibrated one draws its text anew for
each seed. Random pruning stands at every density and pattern, whether asked for or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import nn

from sparsecraft.core import catalog
from sparsecraft.core.catalog import MethodInfo
from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.kinds import Layerwise, ModelWide, WeightMethod
from sparsecraft.core.patterns import Unstructured, parse_pattern
from sparsecraft.lab.settings import CompareSettings
from sparsecraft.model.pruning import check

Kind = Literal["dense", "int8", "sparse", "compact", "compact-int8"]
CONTROL = "random"
CONTROL_SEEDS = 2
"""Random pruning runs at least this often, so that its spread is seen."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a comparison.

    Args:
        kind: What is done to the dense model.
        method: As it was given: a catalog name, or one's own file and class.
        pattern: As it was given.
        sparsity: Fraction of zeros asked of the targets.
        seed: Of everything random, calibration text included.
    """

    kind: Kind
    method: str | None = None
    pattern: str | None = None
    sparsity: float | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        """The method's short name."""
        if self.method is None:
            return self.kind
        return self.method.rpartition(":")[2] if ".py:" in self.method else self.method

    @property
    def arm(self) -> str:
        """The id that all seeds of the cell share."""
        if self.kind != "sparse":
            return self.kind
        return f"{self.name}/{self.pattern}/{self.sparsity:g}"

    @property
    def label(self) -> str:
        """The arm's name for people."""
        if self.kind != "sparse":
            return {"int8": "dense int8", "compact-int8": "compact int8"}.get(self.kind, self.kind)
        percent = f"{100 * (self.sparsity or 0):g} %"
        if self.pattern == "unstructured":
            return f"{self.name} {percent}"
        fixed = parse_pattern(str(self.pattern)).fixed_density is not None
        return f"{self.name} {self.pattern}" if fixed else f"{self.name} {self.pattern} {percent}"

    @property
    def is_control(self) -> bool:
        """Whether it stands in every comparison."""
        return self.kind in ("dense", "int8") or self.method == CONTROL

    def config(self) -> dict[str, Any]:
        """Returns the cell as plain values."""
        return asdict(self)

    def build(self) -> WeightMethod:
        """Returns the method of a sparse cell with its settings.

        Raises:
            SparsityError: For an unknown method or pattern, or settings that contradict.
        """
        info = catalog.get(str(self.method))
        if not issubclass(info.cls, Layerwise | ModelWide):
            raise InvalidValue(
                f"{info.name} is a {info.kind} method; compare takes Layerwise and ModelWide ones, "
                "which prune a trained model. `sparsecraft methods` says which verb uses it."
            )
        pattern = parse_pattern(str(self.pattern))
        options: dict[str, Any] = {}
        if not (self.pattern == "unstructured" and _is_unstructured_by_default(info)):
            options["pattern"] = pattern
        if pattern.fixed_density is None:
            options["sparsity"] = self.sparsity
        return info.cls(**options)


def needs_data(method: WeightMethod) -> bool:
    """Returns whether the method looks at calibration data, so that a seed changes its outcome."""
    declared = isinstance(method, Layerwise) and bool(method.statistics)
    batches = isinstance(method, ModelWide) and method.needs_batches
    return declared or batches or "data" in method.info.taxonomy.needs


def plan(settings: CompareSettings) -> list[Cell]:
    """Returns all cells, the baselines first and the smaller arm last.

    Raises:
        SparsityError: For an unknown method or pattern, or one that compare cannot run.
    """
    cells = [Cell(kind="dense"), Cell(kind="int8")]
    names = [name for name in settings.methods if name != CONTROL]
    for method in [*names, CONTROL]:
        for pattern in settings.patterns:
            for sparsity in _sparsities(pattern, settings.sparsities):
                first = Cell(kind="sparse", method=method, pattern=pattern, sparsity=sparsity)
                built = first.build()
                varies = needs_data(built) or not built.deterministic
                least = CONTROL_SEEDS if method == CONTROL else 1
                seeds = range(max(least, settings.seeds) if varies else 1)
                cells += [Cell(**{**asdict(first), "seed": seed}) for seed in seeds]
    cells += [Cell(kind="compact"), Cell(kind="compact-int8")]
    if len({(cell.arm, cell.seed) for cell in cells}) < len(cells):
        raise InvalidValue(f"two of the methods {list(settings.methods)} have one name: rename one")
    return cells


def first_seeds(cells: Sequence[Cell]) -> list[Cell]:
    """Returns one cell of each arm."""
    return list({cell.arm: cell for cell in reversed(cells)}.values())[::-1]


def validate(
    cells: Sequence[Cell], model: nn.Module, settings: CompareSettings, *, has_loss: bool
) -> None:
    """Raises unless every sparse cell can run on this model; nothing is pruned.

    Args:
        cells: From `plan`.
        model: The dense model.
        settings: For the targets.
        has_loss: Whether the task has labels or predicts tokens, so that gradients exist.

    Raises:
        SparsityError: For a pattern that does not fit a layer, targets that match nothing, or a
            method that needs what the task does not have.
    """
    checked: set[tuple[str | None, str | None]] = set()
    for cell in cells:
        if cell.kind != "sparse" or (cell.method, cell.pattern) in checked:
            continue
        checked.add((cell.method, cell.pattern))
        built, _ = check(model, cell.build(), targets=settings.targets)
        if isinstance(built, ModelWide) and built.needs_batches and not has_loss:
            raise InvalidValue(
                f"{cell.name} takes gradients of a loss, and this task has no labels. Choose a "
                "method without gradients, or a task or model that has a loss."
            )


def _sparsities(pattern: str, asked: Sequence[float]) -> Sequence[float]:
    fixed = parse_pattern(pattern).fixed_density
    return asked if fixed is None else (1 - fixed,)


def _is_unstructured_by_default(info: MethodInfo) -> bool:
    pattern = info.options.get("pattern")
    make = None if pattern is None else pattern.default_factory
    return callable(make) and isinstance(make(), Unstructured)
