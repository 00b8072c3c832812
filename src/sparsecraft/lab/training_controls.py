"""Which trainings stand beside a method, and why one that should cannot.

Dense training, a narrower dense model of as many parameters and random static masks of the same
density always do; a method that changes its mask also has its static twin, which starts alike and
never changes, and a mask made from scores has a shuffled one.

Reference: Liu and Wang, 2023, arXiv 2302.02596, lessons 1, 5 and 7.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from sparsecraft.core import catalog
from sparsecraft.core.errors import SparsityError
from sparsecraft.core.kinds import InTraining
from sparsecraft.core.patterns import Unstructured
from sparsecraft.lab.compact_form import removes_units
from sparsecraft.lab.report.values import quantity
from sparsecraft.lab.training import TrainSettings
from sparsecraft.lab.training_runs import (
    DENSE,
    RANDOM,
    SHUFFLED,
    SMALL,
    TWIN,
    Arm,
    Plan,
    narrow,
)
from sparsecraft.methods.weights.random import Random
from sparsecraft.methods.weights.static import Static, static_twin

NEAR = 0.01
"""A small dense model whose number of parameters misses by more says so."""


def controls(plan: Plan, sparsity: float, kept: int | None = None) -> tuple[list[Arm], list[str]]:
    """Returns the arms beside the method, and a note for each one that it cannot have.

    Args:
        plan: With the method.
        sparsity: What the method asks for, or else what it reached.
        kept: How many parameters it keeps; None leaves the small dense control out.
    """
    notes: list[str] = []
    settings = _with_plain_optimizer(plan.settings, notes)
    if "teacher" in plan.method.captures:
        notes.append(f"{plan.method.info.name} learns from a dense teacher, the controls do not")
    arms = [Arm(DENSE, "dense", None, settings)]
    if sparsity <= 0:
        notes.append(
            f"{plan.method.info.name} leaves no zeros: no sparse control is of its density"
        )
        return arms, notes
    if kept is not None:
        arms += _small_dense(plan, kept, settings, notes)
    random = random_static(plan.method, sparsity)
    if isinstance(plan.method, Static) and _same_start(plan.method, random):
        notes.append("the method is itself the random static control")
        return arms, notes
    twin = _twin(plan.method, notes)
    label = f"random static, {sparsity:.0%} zeros"
    shuffled = _shuffled(plan.method, settings)
    if twin is not None and _same_start(twin, random):
        arms.append(Arm(RANDOM, f"{label} (the static twin too)", random, settings))
        return arms, notes
    arms.append(Arm(RANDOM, label, random, settings))
    arms += shuffled
    if twin is not None:
        arms.append(Arm(TWIN, f"{plan.method.info.name}'s static twin", twin, settings))
    return arms, notes


def random_static(method: InTraining, sparsity: float) -> Static:
    """Returns random pruning before training with the method's density, pattern and allocation.

    A method that knows no allocation is compared with ERK densities.
    """
    pattern = getattr(method, "pattern", Unstructured())
    if pattern.fixed_density is not None:
        return Static(source=Random(pattern=pattern))
    allocation = getattr(method, "allocation", None)
    if allocation is None:
        return Static(sparsity=sparsity, pattern=pattern)
    return Static(source=Random(sparsity=sparsity, pattern=pattern, allocation=allocation))


def settled_density(plan: Plan, first: Mapping[str, Any]) -> tuple[float, int]:
    """Returns the sparsity and the number of parameters that the controls shall have.

    Where whole units have gone, the share of all parameters that went with them counts, and not
    that of the units, which a method's own setting is.

    Args:
        plan: With the method.
        first: The record of its first seed.
    """
    if removes_units(plan.method):
        return 1 - first["kept"] / first["parameters"], first["kept"]
    return first["sparsity"] if first["asked"] is None else first["asked"], first["kept"]


def label_of(method: InTraining) -> str:
    """Returns a method's name, for a static mask with that of its source."""
    name = method.info.name
    if not isinstance(method, Static) or isinstance(method.source, Random):
        return name
    return f"{name} ({method.source.info.name}{', shuffled' if method.shuffled else ''})"


def _small_dense(plan: Plan, kept: int, settings: TrainSettings, notes: list[str]) -> list[Arm]:
    """Returns the arm of the narrower dense model, or none and a note why."""
    if settings.start != "scratch":
        notes.append(
            "there is no small dense control: the training begins with a trained model, and a "
            "narrower one would have to begin anew"
        )
        return []
    try:
        found = narrow(plan, kept, plan.seeds[0])
    except SparsityError as error:
        notes.append(f"there is no small dense control: {error}")
        return []
    label = f"small dense, {quantity(found.parameters)} parameters"
    if abs(found.residual) > NEAR:
        notes.append(
            f"small dense has {found.parameters} parameters and the method keeps {found.wanted}: "
            "no whole widths come nearer"
        )
    return [Arm(SMALL, label, None, settings, kept)]


def _shuffled(method: InTraining, settings: TrainSettings) -> list[Arm]:
    """Returns the control of a mask made from scores: as many weights a layer, elsewhere."""
    if not isinstance(method, Static) or method.shuffled:
        return []
    source = method.source.info
    if source.taxonomy.criterion == "random":
        return []
    label = f"{source.name}'s mask, shuffled in each layer"
    return [Arm(SHUFFLED, label, replace(method, shuffled=True), settings)]


def _twin(method: InTraining, notes: list[str]) -> Static | None:
    if method.info.taxonomy.mask == "static":
        return None
    try:
        return static_twin(method)
    except SparsityError as error:
        notes.append(str(error))
        return None


def _same_start(first: Static, second: Static) -> bool:
    return catalog.describe(first.start()) == catalog.describe(second.start())


def _with_plain_optimizer(settings: TrainSettings, notes: list[str]) -> TrainSettings:
    """Returns the settings for arms that AdamS would refuse, since they have nothing to pull."""
    if settings.optimizer != "adams":
        return settings
    notes.append("the controls train with adamw: adams without masks to pull at is the same rule")
    return TrainSettings(
        **{**asdict(settings), "optimizer": "adamw", "learning_rate": settings.peak}
    )
