"""The tables of `sparsecraft gate`: what is planned, what was achieved, what was left out."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING

from rich.table import Table

from sparsecraft.cli.prune_tables import spread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sparsecraft.core.kinds import Gate
    from sparsecraft.model.gate_places import Places
    from sparsecraft.model.gate_report import PlaceReport


def planned(places: Places, method: Gate) -> Table:
    """Returns one line for every place, and one for everything that is left out with the reason."""
    table = Table("place", "gated", "entries", "weights", "sparsity", "why not")
    greedy = method.greedy_step() is not None
    for place in places:
        asked = f"{method.asked(place.features):.4f}"
        share = f"{asked} on average" if greedy else asked
        gated = "input" if place.at == "input" else "output"
        table.add_row(place.name, gated, str(place.features), str(place.numel), share, "")
    for name, reason in places.skipped:
        table.add_row(name, "", "", "", "0, dense", reason)
    return table


def achieved(rows: Sequence[PlaceReport]) -> Table:
    """Returns one line for each group of like places, asked and achieved side by side."""
    groups: dict[tuple[str, int], list[PlaceReport]] = defaultdict(list)
    for row in rows:
        groups[re.sub(r"\d+", "*", row.name), row.features].append(row)
    table = Table(
        "places", "gates", "entries", "weights", "asked sparsity", "achieved", "of the whole text"
    )
    for (name, features), members in groups.items():
        table.add_row(
            name if members[0].at == "input" else f"{name} (output)",
            str(len(members)),
            str(features),
            str(sum(row.numel for row in members)),
            spread([row.asked for row in members]),
            _measured([row.achieved for row in members]),
            _measured([row.whole_text for row in members]),
        )
    return table


def skipped(pairs: Sequence[tuple[str, str]]) -> Table:
    """Returns one line for each reason why something was left out."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for name, reason in pairs:
        reasons[reason].append(name)
    table = Table("left dense, because", "how many", "such as")
    for reason, found in reasons.items():
        table.add_row(reason, str(len(found)), found[0])
    return table


def _measured(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return spread(known) if known else "not measured"
