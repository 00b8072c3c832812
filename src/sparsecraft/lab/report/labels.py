"""Where to write labels beside points, so that they hide neither points nor one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Box(NamedTuple):
    """A rectangle, y downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def shared(self, other: Box) -> float:
        """Returns the area shared with another box."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0.0) * max(height, 0.0)

    def outside(self, frame: Box) -> float:
        """Returns how far the box sticks out of the frame, summed over its sides."""
        return sum(
            max(over, 0.0)
            for over in (
                frame.left - self.left,
                frame.top - self.top,
                self.right - frame.right,
                self.bottom - frame.bottom,
            )
        )


class Label(NamedTuple):
    """Words for the point at x and y."""

    words: str
    x: float
    y: float


class Placed(NamedTuple):
    """A label with the left end of its baseline, and whether it needs a line to its point."""

    label: Label
    x: float
    y: float
    leader: bool


HEIGHT = 12.0
# Mean advance of a sans-serif letter at the labels' 11 px.
ADVANCE = 6.1
_SIDES = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1))
_REACHES = (9.0, 20.0, 34.0, 50.0, 68.0)


def width_of(words: str) -> float:
    """Returns the estimated width of words in pixels."""
    return ADVANCE * len(words)


def place(labels: Sequence[Label], markers: Sequence[Box], frame: Box) -> list[Placed]:
    """Returns each label at the free place nearest to its point, in the order given.

    Args:
        labels: What to write, the most important first.
        markers: What should not be covered.
        frame: What the labels should stay in.
    """
    taken = list(markers)
    placed = []
    for label in labels:
        options = [
            _option(label, side, reach, taken, frame) for reach in _REACHES for side in _SIDES
        ]
        _, best, box = min(options, key=lambda option: option[0])
        taken.append(box)
        placed.append(best)
    return placed


def _option(
    label: Label, side: tuple[int, int], reach: float, taken: Sequence[Box], frame: Box
) -> tuple[float, Placed, Box]:
    """Returns the cost of writing the label on one side of its point, and where that is."""
    across, down = side
    wide = width_of(label.words)
    shift = reach if not (across and down) else 0.75 * reach
    left = label.x + across * shift - (wide if across < 0 else wide / 2 if across == 0 else 0)
    middle = label.y + down * (shift + (HEIGHT / 3 if across == 0 else 0))
    box = Box(left, middle - HEIGHT / 2, left + wide, middle + HEIGHT / 2)
    cost = 50 * box.outside(frame) + sum(3 * box.shared(other) for other in taken) + reach
    cost += _SIDES.index(side)
    placed = Placed(label, left, middle + HEIGHT / 3, leader=reach > _REACHES[1])
    return cost, placed, box
