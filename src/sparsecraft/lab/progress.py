"""Progress of a comparison: one bar over all its work, with the time that is left.

Work is weighed in expected seconds, so that a long distillation does not look like one of twenty
equal steps. Where the output is no terminal, each finished piece prints one line instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from sparsecraft.lab.report.values import duration

Step = Callable[[int, int], None]


class WorkBar:
    """A progress bar over pieces of work of different length.

    Args:
        pieces: Name of each piece to its expected seconds.
        show: Whether anything is printed.
        console: Where; the error stream by default, so that results can be piped.
    """

    def __init__(
        self, pieces: dict[str, float], *, show: bool = True, console: Console | None = None
    ) -> None:
        self.pieces = dict(pieces)
        self.console = console or Console(stderr=True)
        self.show = show
        self._done: list[str] = []
        self._partial = 0.0
        self.begin = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self.console,
            disable=not (show and self.console.is_terminal),
        )
        self._task: TaskID = self._bar.add_task("starting", total=1.0, left="")

    def __enter__(self) -> WorkBar:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    @property
    def finished(self) -> float:
        """Expected seconds of what is done."""
        return sum(self.pieces[name] for name in self._done) + self._partial

    @property
    def left(self) -> float:
        """Seconds left: the weight of what is not done, at the pace so far."""
        elapsed = time.monotonic() - self.begin
        pace = elapsed / self.finished if self.finished > 0 else 1.0
        return max(0.0, sum(self.pieces.values()) - self.finished) * pace

    def reweigh(self, pieces: dict[str, float]) -> None:
        """Replaces expected seconds, once it is known how long one piece takes."""
        self.pieces.update(pieces)

    @contextmanager
    def piece(self, name: str, label: str) -> Iterator[Step]:
        """Gives a function (done, total) for the piece, which is complete when the block ends."""

        def step(done: int, total: int) -> None:
            self._partial = self.pieces[name] * min(1.0, done / max(1, total))
            self._draw(label)

        self._draw(label)
        yield step
        self.complete(name, label)

    def complete(self, name: str, label: str) -> None:
        """Counts a piece as done, here or elsewhere."""
        self._partial = 0.0
        self._done.append(name)
        self._draw(label)
        if self.show and not self.console.is_terminal:
            count, of = len(self._done), len(self.pieces)
            left = f", {duration(self.left)} left" if count < of else ""
            self.console.print(f"[{count}/{of}] {label}{left}", markup=False, highlight=False)

    def skip(self, name: str, label: str) -> None:
        """Counts a piece that was done before; it says nothing of the pace."""
        self.pieces[name] = 0.0
        self.complete(name, label)

    def _draw(self, label: str) -> None:
        share = self.finished / (sum(self.pieces.values()) or 1.0)
        left = f"{duration(self.left)} left" if self.finished > 0 else ""
        self._bar.update(self._task, description=label, completed=share, left=left)
