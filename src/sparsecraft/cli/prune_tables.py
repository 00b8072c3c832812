"""The tables of `sparsecraft prune`: what is planned, what was achieved, what was left out."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from sparsecraft.core.kinds import Layerwise, WeightMethod
from sparsecraft.core.mask import count

if TYPE_CHECKING:
    from sparsecraft.model.pruning import LayerReport, PruneSummary
    from sparsecraft.model.targets import Targets


def plan(targets: Targets, method: WeightMethod) -> Table:
    """Returns one line for every parameter: shape, entries, planned density and the reason."""
    planned = densities(targets, method)
    table = Table("parameter", "shape", "entries", "density", "why")
    for row in targets.rows:
        density = "1, kept"
        if row.targeted:
            known = planned.get(row.name)
            density = "shared by all" if known is None else f"{known:.4f}"
        shape = " x ".join(map(str, row.shape))
        table.add_row(row.name, shape, str(row.numel), density, row.reason)
    return table


def densities(targets: Targets, method: WeightMethod) -> dict[str, float]:
    """Returns the planned density of each parameter; none where scores are compared across layers.

    A parameter that holds several targets has what they keep together.
    """
    if not isinstance(method, Layerwise):
        return {}
    share = method.allocation(targets.shapes, method.density)
    kept: dict[str, int] = defaultdict(int)
    for target in targets:
        kept[target.parameter] += count(target.numel, share[target.name])
    sizes = {row.name: row.numel for row in targets.rows}
    covered: dict[str, int] = defaultdict(int)
    for target in targets:
        covered[target.parameter] += target.numel
    return {name: (kept[name] + sizes[name] - covered[name]) / sizes[name] for name in kept}


def achieved(report: PruneSummary) -> Table:
    """Returns one line for each group of like layers, asked and achieved side by side.

    What the method reports of layers is averaged over those of the group that it reports of.
    """
    groups: dict[str, list[LayerReport]] = defaultdict(list)
    for row in report.rows:
        groups[re.sub(r"\d+", "*", row.name)].append(row)
    facts = list(dict.fromkeys(fact for row in report.rows for fact in row.facts))
    table = Table("layers", "matrices", "weights", "asked sparsity", "achieved sparsity", *facts)
    for name, rows in groups.items():
        asked = [1 - row.asked for row in rows if row.asked is not None]
        table.add_row(
            name,
            str(len(rows)),
            str(sum(row.numel for row in rows)),
            spread(asked) if asked else "shared by all",
            spread([1 - row.achieved for row in rows]),
            *(_average([row.facts[fact] for row in rows if fact in row.facts]) for fact in facts),
        )
    return table


def skipped(targets: Targets) -> Table:
    """Returns one line for each reason why parameters were left out."""
    reasons: dict[str, list[int]] = defaultdict(list)
    for row in targets.rows:
        if not row.targeted:
            reasons[row.reason].append(row.numel)
    table = Table("left as they are, because", "parameters", "entries")
    for reason, sizes in reasons.items():
        table.add_row(reason, str(len(sizes)), str(sum(sizes)))
    return table


def _average(values: list[float]) -> str:
    return f"{sum(values) / len(values):.4g}" if values else "none"


def spread(values: Sequence[float]) -> str:
    """Returns one number, or the lowest and the highest of several."""
    low, high = f"{min(values):.4f}", f"{max(values):.4f}"
    return low if low == high else f"{low} to {high}"
