"""What gating will need in memory, said before it starts, and refused where it cannot be had."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from sparsecraft.core.errors import OutOfMemory
from sparsecraft.core.kinds import Gate
from sparsecraft.model.gate_places import Place
from sparsecraft.model.memory import Room, format_bytes, room

_COPIES = 3  # of the widest place: its values joined, their scores, their order


@dataclass(frozen=True)
class GateMemory:
    """What gating needs beside the model.

    Args:
        values_bytes: Of the calibration activations of the block that has most, and between blocks.
        copy_bytes: Of the weights, kept so that a rotation can be undone.
    """

    values_bytes: int
    copy_bytes: int

    @property
    def bytes(self) -> int:
        """All of it."""
        return self.values_bytes + self.copy_bytes


def gate_memory(model: nn.Module, method: Gate, places: Sequence[Place], tokens: int) -> GateMemory:
    """Returns what gating needs beside the model, at most.

    Args:
        model: The model.
        method: What fits the gates.
        places: Where.
        tokens: Calibration tokens.
    """
    item = next(model.parameters()).element_size()
    widths = _widths(places) if method.needs_values() else {}
    widest = max((place.features for place in places), default=0)
    held = max(widths.values(), default=0) + (_COPIES * widest if widths else 0)
    between = 2 * min((place.features for place in places), default=0)
    walked = method.needs_values() or method.greedy_step() is not None
    values = tokens * item * (held + between) if walked else 0
    copied = getattr(method, "transform", False)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return GateMemory(values, weights if copied else 0)


def check_memory(needed: GateMemory, tokens: int, available: Room | None = None) -> None:
    """Raises OutOfMemory if the memory cannot be had.

    Args:
        needed: What gating needs.
        tokens: Calibration tokens.
        available: What may be taken; asked of the system unless given.

    Raises:
        OutOfMemory: If it is too much; the message says which number of tokens would fit.
    """
    free = room() if available is None else available
    if free is None or needed.bytes <= free.bytes:
        return
    left = free.bytes - needed.copy_bytes
    fitting = tokens * left // needed.values_bytes if needed.values_bytes and left > 0 else 0
    advice = (
        f"Use at most {fitting} calibration tokens (--max-tokens {fitting})."
        if fitting > 0
        else "Use the method without the rotation (transform=False, --no-rotation), which keeps no "
        "copy of the weights."
    )
    raise OutOfMemory(
        f"gating needs about {format_bytes(needed.bytes)} beside the model, and only "
        f"{format_bytes(max(0, free.bytes))} may be taken ({free.limit}). {advice}"
    )


def _widths(places: Sequence[Place]) -> dict[str, int]:
    """Returns block name to the entries of a token that are held for it at once.

    Matrices side by side in one module read one input, or the last one what the others made.
    """
    groups = Counter((p.block, p.module.rpartition(".")[0], p.features) for p in places)
    widths: dict[str, int] = defaultdict(int)
    for (block, _, features), number in groups.items():
        widths[block] += features * min(number, 2)
    return dict(widths)
