"""A decision record read for people: like layers together, their best dense and sparse forms."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from sparsecraft.lab.speed_forms import is_sparse
from sparsecraft.model.runtime import CandidateRecord, DecisionRecord, LayerChoice


@dataclass(frozen=True, kw_only=True)
class LayerGroup:
    """Layers that compute in the same way, for one number of rows; figures are their medians.

    Args:
        name: The layers' names, numbers that differ as a star.
        count: How many they are.
        rows: Rows of their input.
        density: Share of their weights that are not zero.
        kept: Share of their inputs that a gate keeps; None without one.
        as_it_was: Microseconds of the layers as they were; None where not timed.
        dense: Name and microseconds of the fastest dense form within the tolerance.
        sparse: Likewise of the fastest sparse one.
        chosen: The form taken.
        why: In words, of the first of them.
    """

    name: str
    count: int
    rows: int
    density: float
    kept: float | None
    as_it_was: float | None
    dense: tuple[str, float] | None
    sparse: tuple[str, float] | None
    chosen: str
    why: str


def layer_groups(record: DecisionRecord, *, every: bool = False) -> list[LayerGroup]:
    """Returns the record's layers in groups of like ones, in the order of the model.

    Args:
        record: What `pack` decided.
        every: Whether every layer is a group of its own.
    """
    tolerance = float(record.settings["tolerance"])
    groups: dict[tuple[str, int, str], list[LayerChoice]] = defaultdict(list)
    for choice in record.choices:
        name = choice.layer if every else re.sub(r"\d+", "*", choice.layer)
        groups[name, choice.rows, choice.chosen].append(choice)
    return [
        LayerGroup(
            name=name,
            count=len(choices),
            rows=rows,
            density=median(choice.density for choice in choices),
            kept=_middle(choice.kept for choice in choices),
            as_it_was=_middle(choice[choice.baseline].microseconds for choice in choices),
            dense=_best(choices, sparse=False, tolerance=tolerance),
            sparse=_best(choices, sparse=True, tolerance=tolerance),
            chosen=chosen,
            why=choices[0].why,
        )
        for (name, rows, chosen), choices in groups.items()
    ]


def fastest(choice: LayerChoice, *, sparse: bool, tolerance: float) -> CandidateRecord | None:
    """Returns the fastest candidate of a layer that is sparse, or is not; None if none was timed.

    Args:
        choice: The layer.
        sparse: Which kind is looked for.
        tolerance: Candidates of which a greater error is known are left out.
    """
    timed = [
        (each.microseconds, each.name, each)
        for each in choice.candidates
        if each.microseconds is not None
        and is_sparse(each.name) is sparse
        and (each.error is None or each.error <= tolerance)
    ]
    return min(timed)[2] if timed else None


def _best(
    choices: Sequence[LayerChoice], *, sparse: bool, tolerance: float
) -> tuple[str, float] | None:
    every = [fastest(choice, sparse=sparse, tolerance=tolerance) for choice in choices]
    found = [each for each in every if each is not None]
    middle = _middle(each.microseconds for each in found)
    return None if middle is None else (found[0].name, middle)


def _middle(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
