"""Batches of activations that the model makes as they are read, mixed in a buffer.

The stream is the text, epoch after epoch; its batches go to the ranks in turn. Where a reader
stands follows from its step: to go on, it counts through the text without running the model, and
then runs it on those batches alone of which the buffer still held rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue
from sparsecraft.model.activation_store.batch import ActivationBatch
from sparsecraft.model.activation_store.inputs import Inputs
from sparsecraft.model.activation_store.mixing import MixingBuffer
from sparsecraft.model.activation_store.reader import Reader
from sparsecraft.model.ranks import fail_together

if TYPE_CHECKING:
    from sparsecraft.model.activation_store.live import LiveActivations


@dataclass(frozen=True)
class Window:
    """One batch of the stream.

    Args:
        number: In the stream of all ranks, over all epochs.
        epoch: How often the text had been read before.
        inputs: What the model reads.
        first: The number of its first context in the text.
        drop: Kept rows at its beginning that are held out.
        rows: Rows behind these.
    """

    number: int
    epoch: int
    inputs: Inputs
    first: int
    drop: int
    rows: int


class LiveReader(Reader):
    """An endless iterator of batches; made by `LiveActivations.reader`.

    Args:
        store: The stream.
        batch: Rows of each rank's batch.
        seed: Of the order.
        rank: Which of the processes this is.
        world: How many processes read together.

    Raises:
        InvalidValue: If half the buffer does not hold a batch, or a number is not allowed.
    """

    store: LiveActivations

    def __init__(
        self, store: LiveActivations, batch: int, seed: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        super().__init__(store, batch, seed, rank, world)
        self._begin()

    def __next__(self) -> ActivationBatch:
        fail_together(lambda: self._refill(fetch=True), self.store.device)
        slots = self._buffer.take(self.batch)
        numbers, rows = self._buffer.origins(slots)
        found = {name: values[slots].float() for name, values in self._values.items()}
        self.step += 1
        return ActivationBatch(
            found["x"], found.get("gradient"), found.get("target"), numbers * 2**32 + rows
        )

    @property
    def epoch(self) -> int:
        """How often the whole text has gone into the buffer."""
        return self._epoch

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes where another reader of the same stream stood, with the same rows in its buffer."""
        step = self.step
        super().load_state_dict(state)
        wanted, self.step = self.step, step
        self._begin()
        while self.step < wanted:
            self._refill(fetch=False)
            self._buffer.take(self.batch)
            self.step += 1
        self._fetch_again()

    def _check_size(self) -> None:
        if self.batch > self.store.buffer_rows // 2:
            raise InvalidValue(
                f"batch={self.batch} is more than half of buffer_rows={self.store.buffer_rows}: "
                f"give a buffer of at least {2 * self.batch} rows, better a hundred batches"
            )

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "buffer_rows": self.store.buffer_rows}

    def _begin(self) -> None:
        self.step = self._epoch = 0
        self._buffer = MixingBuffer(self.store.buffer_rows, self.seed, self.rank)
        self._values: dict[str, Tensor] = {}
        self._stream = self._mine()
        self._ahead: Window | None = None

    def _mine(self) -> Iterator[Window]:
        """Yields this rank's batches."""
        return (w for w in self.store.windows() if w.number % self.world == self.rank)

    def _refill(self, *, fetch: bool) -> None:
        """Fills the buffer where half of it is read.

        Args:
            fetch: Whether the model is run; else only the places are counted.
        """
        buffer = self._buffer
        if len(buffer) > buffer.slots // 2 and len(buffer) >= self.batch:
            return
        fresh: list[tuple[Window, Tensor]] = []
        while True:
            window = self._ahead or next(self._stream)
            self._ahead = window
            if window.rows > buffer.slots // 2:
                raise InvalidValue(
                    f"one batch of {len(window.inputs.texts) or 'several'} contexts gives "
                    f"{window.rows} rows, more than half of buffer_rows={buffer.slots}: give a "
                    "larger buffer, or a smaller batch_size"
                )
            if window.rows > buffer.room:
                break
            fresh.append((window, buffer.add(window.number, window.rows)))
            self._epoch, self._ahead = window.epoch, None
        buffer.shuffle()
        if fetch:
            self._put((window, slots, torch.arange(window.rows)) for window, slots in fresh)

    def _fetch_again(self) -> None:
        """Runs the model on the batches of which the buffer holds rows, and puts these there."""
        slots = self._buffer.held()
        numbers, rows = self._buffer.origins(slots)
        needed, last = set(numbers.tolist()), int(numbers.max()) if len(numbers) else -1

        def found() -> Iterator[tuple[Window, Tensor, Tensor]]:
            for window in self._mine() if needed else ():
                if window.number in needed:
                    mine = numbers == window.number
                    yield window, slots[mine], rows[mine]
                if window.number >= last:
                    return

        self._put(found())

    def _put(self, wanted: Iterable[tuple[Window, Tensor, Tensor]]) -> None:
        """Runs the model on batches, and puts some of their rows into slots."""
        asked = ((window, (slots, rows)) for window, slots, rows in wanted)
        self.store.run(asked, self._keep)

    def _keep(self, window: Window, where: tuple[Tensor, Tensor], parts: dict[str, Tensor]) -> None:
        slots, rows = where
        for name, values in parts.items():
            if name not in self._values:
                shape = (self._buffer.slots, values.shape[1])
                self._values[name] = torch.empty(shape, dtype=values.dtype)
            self._values[name][slots] = values[window.drop + rows]
