"""The entry: a dense model in, a larger one of equal sparse cost out, with the report."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import nn

from sparsecraft.core.allocation import parse_allocation
from sparsecraft.core.errors import BudgetError, InvalidValue, UnknownName, check_sparsity
from sparsecraft.core.iso_flop import (
    doped_rank,
    factorized_rank,
    matched_sparsity,
    parallel_branches,
    wide_factorized_rank,
    wide_widths,
)
from sparsecraft.core.mask import count
from sparsecraft.methods.weights.sparse_ift.doped import dope
from sparsecraft.methods.weights.sparse_ift.factorized import Middle, factorize, sizes
from sparsecraft.methods.weights.sparse_ift.initial import Initial, draw_weights
from sparsecraft.methods.weights.sparse_ift.parallel import parallelize
from sparsecraft.methods.weights.sparse_ift.report import IsoFlopReport
from sparsecraft.methods.weights.sparse_ift.scope import ROLES, Scope, find_scope
from sparsecraft.methods.weights.sparse_ift.wide import Widened, widen
from sparsecraft.model.flops import FlopProfile, profile_flops
from sparsecraft.model.targets import Targets, find_targets
from sparsecraft.model.units import default_input, find_units

Family = Literal["wide", "parallel", "factorized", "doped", "wide_factorized"]
FAMILIES: tuple[Family, ...] = get_args(Family)
ALLOCATIONS = ("uniform", "er", "erk")


@dataclass(frozen=True, kw_only=True)
class Choices:
    """How a family is built; see `sparse_ift`."""

    family: str
    sparsity: float
    middle: Middle
    sparse_factors: str
    base_width: int | None
    seed: int


@dataclass(frozen=True, kw_only=True)
class Built:
    """A transformed model before its sparsity is solved.

    Args:
        model: The larger model.
        fresh: Names or patterns of the weights that are drawn anew.
        sparse: Names or patterns of the parameters that become sparse.
        grown: What grew: name to (before, after).
        notes: For the report.
    """

    model: nn.Module
    fresh: tuple[str, ...]
    sparse: tuple[str, ...]
    grown: Mapping[str, tuple[int, int]]
    notes: tuple[str, ...] = field(default=())


def sparse_ift(
    model: nn.Module,
    family: Family = "wide",
    *,
    sparsity: float = 0.75,
    example_input: Any = None,
    skip: Sequence[str] = ROLES,
    match_flops: bool = True,
    tolerance: float = 1e-3,
    allocation: str = "uniform",
    middle: Middle = "nonlinear_relu",
    sparse_factors: Literal["both", "U"] = "both",
    base_width: int | None = None,
    initial: Initial = "fan_out",
    seed: int = 0,
) -> tuple[nn.Module, IsoFlopReport]:
    """Returns a larger model that costs what this one costs once it is sparse, and the report.

    The new layers are dense and untrained; train them sparse, best with RigL:
    `Sparsifier(larger, "rigl", **report.options, total_steps=...)`. Sparsity 0 returns a copy.

    Args:
        model: The dense model, left as it was.
        family: "wide", "parallel", "factorized", "doped", or "wide_factorized", a dense control.
        sparsity: Fixes how much larger the layers become, in [0, 1).
        example_input: A small input, as in `find_units`; FLOPs are counted on it.
        skip: Layers that stay dense: "stem", "head", or names as in `find_targets`. With "wide"
            they may still get more inputs or outputs.
        match_flops: Whether to solve the sparsity anew so that profiled FLOPs equal the dense
            model's; otherwise it stays as asked.
        tolerance: Largest relative difference of the FLOPs, where matched.
        allocation: "uniform", "er" or "erk".
        middle: Of "factorized": "nonlinear_relu", "nonlinear_norelu" or "linear".
        sparse_factors: Of "factorized": "both", or "U" to leave V dense.
        base_width: Of "wide": see `wide_widths`.
        initial: How new weights are drawn; see `draw_weights`.
        seed: Of the new weights.

    Raises:
        UnknownName: For an unknown family, allocation or middle.
        InvalidValue: For a sparsity outside [0, 1); for "parallel" where 1 / (1 - s) is not whole;
            for grouped convolutions; for layers that cannot be followed or exchanged; for an
            example that the model does not accept.
        BudgetError: If a layer would keep no weight, or no sparsity meets the budget.
        NoMatch: If no layer is left to transform.

    Example:
        >>> import torch
        >>> hidden = [nn.Linear(32, 32), nn.ReLU()]
        >>> mlp = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), *hidden, nn.Linear(32, 10))
        >>> larger, report = sparse_ift(mlp, sparsity=0.75, example_input=torch.zeros(1, 16))
        >>> larger[2], report.targets
        (Linear(in_features=64, out_features=64, bias=True), ('2.weight',))
        >>> report.budget, report.flops, round(report.sparsity, 3)
        (3712, 3712, 0.953)

    Reference:
        Thangarasa et al., 2023, arXiv 2303.11525.
    """
    if family not in FAMILIES:
        raise UnknownName("family", str(family), FAMILIES)
    if allocation not in ALLOCATIONS:
        raise UnknownName("allocation of sparse_ift", str(allocation), ALLOCATIONS)
    asked = check_sparsity(sparsity)
    example = default_input(model) if example_input is None else example_input
    budget = _profiled(model, example)
    if asked == 0:
        return copy.deepcopy(model), _untouched(family, allocation, model, budget)
    choices = Choices(
        family=family,
        sparsity=asked,
        middle=middle,
        sparse_factors=sparse_factors,
        base_width=base_width,
        seed=seed,
    )
    scope = find_scope(model, example, skip, whole=family != "wide")
    with torch.random.fork_rng(devices=[]):  # layers draw weights when they are made
        built = _BUILDERS[family](model, scope, example, choices)
    profile = profile_flops(built.model, example)
    targets = find_targets(built.model, list(built.sparse)) if built.sparse else None
    cost = _Cost(profile, targets, allocation)
    begun = asked if targets is not None else 0.0
    solved = begun
    if match_flops and targets is not None:
        solved = matched_sparsity(cost.flops, budget.total, tolerance=tolerance)
    densities = cost.densities(solved)
    _check_not_empty(targets, densities)
    draw_weights(built.model, built.fresh, seed, initial=initial, densities=densities)
    return built.model, IsoFlopReport(
        family=family,
        asked=asked,
        sparsity=solved,
        allocation=allocation,
        targets=tuple(dict.fromkeys(t.parameter for t in targets or ())),
        densities=densities,
        budget=budget.total,
        flops=profile.effective(densities),
        flops_as_asked=round(cost.flops(begun)),
        kernel_flops=profile.total,
        parameters=(_size(model), _size(built.model)),
        sizes=built.grown,
        skipped=scope.skipped,
        notes=built.notes,
    )


@dataclass(frozen=True)
class _Cost:
    """The effective FLOPs of a transformed model as a function of its sparsity."""

    profile: FlopProfile
    targets: Targets | None
    allocation: str

    def densities(self, sparsity: float) -> dict[str, float]:
        """Returns parameter name to density."""
        if self.targets is None:
            return {}
        if sparsity >= 1:
            return {target.parameter: 0.0 for target in self.targets}
        shares = parse_allocation(self.allocation)(self.targets.shapes, 1 - sparsity)
        kept: dict[str, float] = {}
        for target in self.targets:
            part = target.numel / self.profile.sizes[target.parameter]
            kept[target.parameter] = kept.get(target.parameter, 0.0) + part * shares[target.name]
        return kept

    def flops(self, sparsity: float) -> float:
        return self.profile.effective(self.densities(sparsity))


def _wide(model: nn.Module, scope: Scope, example: Any, choices: Choices) -> Built:
    wider, grown = _widened(model, scope, example, choices)
    parameters = tuple(dict.fromkeys(target.parameter for target in scope.targets))
    notes = ("the config no longer says the model's shapes",) * hasattr(model, "config")
    if wider.one:
        notes += (f"grew on one side only: {', '.join(wider.one)}",)
    return Built(
        model=wider.model,
        fresh=parameters,
        sparse=parameters,
        grown=grown,
        notes=notes,
    )


def _widened(
    model: nn.Module, scope: Scope, example: Any, choices: Choices
) -> tuple[Widened, dict[str, tuple[int, int]]]:
    groups = find_units(model, example)
    widths = wide_widths(
        {group.name: group.size for group in groups}, choices.sparsity, base=choices.base_width
    )
    wider = widen(model, widths, groups, scope, example, choices.seed)
    return wider, {group.name: (group.size, widths[group.name]) for group in groups}


def _parallel(model: nn.Module, scope: Scope, example: Any, choices: Choices) -> Built:
    larger, branches = copy.deepcopy(model), parallel_branches(choices.sparsity)
    made = parallelize(larger, scope, branches, example)
    sparse = (f"{name}.branches.{j}.0.weight" for name in made for j in range(branches))
    grown = dict.fromkeys(made, (1, branches))
    return Built(model=larger, fresh=_inside(made), sparse=tuple(sparse), grown=grown)


def _factorized(model: nn.Module, scope: Scope, example: Any, choices: Choices) -> Built:
    def rank(name: str, layer: Any) -> int:
        return factorized_rank(*sizes(layer), choices.sparsity, sparse=choices.sparse_factors)

    larger = copy.deepcopy(model)
    made = factorize(larger, scope, rank, choices.middle)
    factors = ("U",) if choices.sparse_factors == "U" else ("U", "V")
    sparse = tuple(f"{name}.{factor}.weight" for name in made for factor in factors)
    return Built(model=larger, fresh=_inside(made), sparse=sparse, grown=_ranks(made))


def _doped(model: nn.Module, scope: Scope, example: Any, choices: Choices) -> Built:
    larger = copy.deepcopy(model)
    made = dope(larger, scope, lambda _, layer: doped_rank(*sizes(layer), choices.sparsity))
    sparse = tuple(f"{name}.W.weight" for name in made)
    grown = {name: (0, int(each.rank)) for name, each in made.items()}  # type: ignore[arg-type]
    notes = tuple(f"{name}: no room for a low-rank term" for name, (_, r) in grown.items() if not r)
    return Built(model=larger, fresh=_inside(made), sparse=sparse, grown=grown, notes=notes)


def _wide_factorized(model: nn.Module, scope: Scope, example: Any, choices: Choices) -> Built:
    wider, grown = _widened(model, scope, example, choices)

    def rank(name: str, layer: Any) -> int:
        narrow_inputs, narrow_outputs, kernel = sizes(model.get_submodule(name))
        inputs, outputs, _ = sizes(layer)
        return wide_factorized_rank(narrow_inputs, narrow_outputs, kernel, inputs, outputs)

    made = factorize(wider.model, scope, rank, choices.middle)
    notes = ("a dense control: nothing is sparse, and FLOPs match up to rounding and skip",)
    return Built(
        model=wider.model,
        fresh=_inside(made),
        sparse=(),
        grown={**grown, **_ranks(made)},
        notes=notes,
    )


_BUILDERS: Mapping[str, Callable[[nn.Module, Scope, Any, Choices], Built]] = {
    "wide": _wide,
    "parallel": _parallel,
    "factorized": _factorized,
    "doped": _doped,
    "wide_factorized": _wide_factorized,
}


def _inside(made: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(f"{name}.*" for name in made)


def _ranks(made: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    return {name: (0, each.U.weight.shape[0]) for name, each in made.items()}


def _check_not_empty(targets: Targets | None, densities: Mapping[str, float]) -> None:
    empty = [t.name for t in targets or () if not count(t.numel, densities[t.parameter])]
    if empty:
        raise BudgetError(
            f"{empty[:3]}: not a single weight would be left. Ask for a lower sparsity, or leave "
            "so small a layer dense (skip=...)."
        )


def _untouched(
    family: str, allocation: str, model: nn.Module, profile: FlopProfile
) -> IsoFlopReport:
    return IsoFlopReport(
        family=family,
        asked=0.0,
        sparsity=0.0,
        allocation=allocation,
        targets=(),
        densities={},
        budget=profile.total,
        flops=profile.total,
        flops_as_asked=profile.total,
        kernel_flops=profile.total,
        parameters=(_size(model), _size(model)),
        notes=("sparsity 0: the dense model itself",),
    )


def _profiled(model: nn.Module, example: Any) -> FlopProfile:
    try:
        return profile_flops(model, example)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise InvalidValue(
            f"{type(model).__name__} does not run on the example input: {error}. "
            "Give one that it accepts (example_input=...)."
        ) from error


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
