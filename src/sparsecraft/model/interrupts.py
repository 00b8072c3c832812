"""Ctrl-C that waits for the end of what must not be done by halves, such as a training step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class HeldInterrupt:
    """Whether Ctrl-C was pressed in a block of `hold_interrupts`."""

    def __init__(self) -> None:
        self.pressed = False

    def press(self, number: int, frame: FrameType | None) -> None:
        """Remembers the first one; the second raises KeyboardInterrupt at once."""
        if self.pressed:
            signal.default_int_handler(number, frame)
        self.pressed = True


@contextmanager
def hold_interrupts() -> Iterator[HeldInterrupt]:
    """Gives a block in which the first Ctrl-C is remembered, and raised when the block ends.

    A long block looks at `pressed` where it can stop, and raises KeyboardInterrupt itself. A second
    Ctrl-C stops it anywhere. Nothing is held outside the main thread, which alone gets signals, nor
    where the program handles or ignores Ctrl-C in a way of its own.

    Example:
        >>> with hold_interrupts() as held:
        ...     held.pressed
        False
    """
    held = HeldInterrupt()
    usual = signal.getsignal(signal.SIGINT)
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or usual is not signal.default_int_handler:
        yield held
        return
    signal.signal(signal.SIGINT, held.press)
    try:
        yield held
    finally:
        signal.signal(signal.SIGINT, usual)
    if held.pressed:
        raise KeyboardInterrupt
