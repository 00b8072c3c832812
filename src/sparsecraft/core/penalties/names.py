"""Penalties of single entries by short names, and in the convention without 1/2."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.penalties.base import Penalty
from sparsecraft.core.penalties.entries import L0, L1
from sparsecraft.core.penalties.nonconvex import CEL0, MCP, SCAD, Log, Lq
from sparsecraft.core.penalties.selections import AbsTopK, TopK

NAMES: Mapping[str, type[Penalty]] = {
    "l1": L1,
    "l0": L0,
    "lq": Lq,
    "log": Log,
    "cel0": CEL0,
    "mcp": MCP,
    "scad": SCAD,
    "abstopk": AbsTopK,
    "topk": TopK,
}
ALIASES: Mapping[str, str] = {"soft": "l1", "hard": "l0", "half": "lq", "firm": "mcp"}


def by_name(name: str, **settings: Any) -> Penalty:
    """Returns the penalty of this name with these settings.

    Args:
        name: "l1" ("soft"), "l0" ("hard"), "lq" ("half" where q is left out), "log", "cel0",
            "mcp" ("firm"), "scad", "abstopk" or "topk", in any case.
        settings: Of its class: strength, q, scale, reach, norm, k, ...

    Raises:
        UnknownName: For another name or setting.

    Example:
        >>> by_name("half", strength=0.1)
        Lq(strength=0.1, q=0.5)
    """
    key = ALIASES.get(str(name).lower(), str(name).lower())
    if key not in NAMES:
        raise UnknownName("penalty", str(name), [*NAMES, *ALIASES])
    fields = {field.name for field in dataclasses.fields(NAMES[key])}  # type: ignore[arg-type]
    for setting in settings:
        if setting not in fields:
            raise UnknownName(f"setting of the penalty {key!r}", setting, fields)
    if "k" in fields and "k" not in settings:
        raise InvalidValue(f"the penalty {key!r} needs k, the entries that it allows")
    return NAMES[key](**settings)


def describe_penalty(penalty: Penalty) -> dict[str, Any]:
    """Returns the penalty's name and settings as plain values: `by_name(**...)` makes it again.

    Raises:
        InvalidValue: If it has no short name.
    """
    name = next((key for key, cls in NAMES.items() if type(penalty) is cls), None)
    if name is None:
        raise InvalidValue(
            f"{type(penalty).__name__} has no short name, so it cannot be written to a file; "
            f"known are {', '.join(sorted(NAMES))}"
        )
    return {"name": name, **dataclasses.asdict(penalty)}  # type: ignore[call-overload]


def without_half(name: str, strength: float, **settings: Any) -> Penalty:
    """Returns the penalty that papers write as argmin (z - x)^2 + step * strength * R(z).

    Blumensath and Davies (hard) and Xu et al. (half) leave the 1/2 out of the square, which is
    half the strength here.

    Example:
        >>> without_half("hard", 0.5)
        L0(strength=0.25)
    """
    return by_name(name, strength=strength / 2, **settings)
