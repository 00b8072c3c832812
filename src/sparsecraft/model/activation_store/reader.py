"""Batches of a store in random order, without end, divided between ranks.

The epochs stand one after another as one endless sequence of rows, each epoch in its own order.
Step s of rank r takes the places from (s * world + r) * batch on: ranks never read the same place,
all take the same steps, and the step alone says where a reader stands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sparsecraft.core.errors import InvalidValue
from sparsecraft.model.activation_store.batch import ActivationBatch
from sparsecraft.model.activation_store.shuffle import Permutation

if TYPE_CHECKING:
    from sparsecraft.model.activation_store.store import ActivationStore


class Reader:
    """An endless iterator of batches; made by `ActivationStore.reader`.

    The rows of a batch are sorted by their number, so that files are read forwards.

    Args:
        store: What is read.
        batch: Rows of each rank's batch.
        seed: Of the order.
        rank: Which of the processes this is.
        world: How many processes read together.

    Raises:
        InvalidValue: If the ranks' batches together exceed the store, or a number is not allowed.
    """

    def __init__(
        self, store: ActivationStore, batch: int, seed: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        if batch < 1 or world < 1 or not 0 <= rank < world:
            raise InvalidValue(
                f"batch={batch}, rank={rank}, world={world}: give at least one row, and a rank "
                "below world"
            )
        self.store, self.batch, self.seed = store, batch, seed
        self.rank, self.world = rank, world
        self._check_size()
        self.step = 0
        """Batches that this reader has given."""
        self._order = (-1, Permutation(1, 0))

    def __iter__(self) -> Reader:
        return self

    def __next__(self) -> ActivationBatch:
        first = (self.step * self.world + self.rank) * self.batch
        places = torch.arange(first, first + self.batch)
        epochs = places // len(self.store)
        parts = [
            self._in_epoch(epoch).of(places[epochs == epoch] % len(self.store))
            for epoch in range(int(epochs[0]), int(epochs[-1]) + 1)
        ]
        found = self.store.rows(torch.cat(parts).sort().values)
        self.step += 1  # last, so that a read that failed is read again
        return found

    @property
    def position(self) -> int:
        """Rows that all ranks together have read."""
        return self.step * self.batch * self.world

    @property
    def epoch(self) -> int:
        """How often all rows have been read."""
        return self.position // len(self.store)

    def state_dict(self) -> dict[str, Any]:
        """Returns where the reader stands, as plain numbers; the same on every rank."""
        return {"step": self.step, **self._settings()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes where another reader of the same store stood.

        Raises:
            InvalidValue: If that one read another store, in another order or by other ranks.
        """
        for name, value in self._settings().items():
            if state.get(name) != value:
                raise InvalidValue(
                    f"the saved reader has {name}={state.get(name)}, this one {value}: go on with "
                    "the same store, batch, seed and number of ranks"
                )
        self.step = int(state["step"])

    def _check_size(self) -> None:
        rows = len(self.store)
        if self.batch * self.world > rows:
            ranks = f" on each of {self.world} ranks" if self.world > 1 else ""
            raise InvalidValue(
                f"batch={self.batch}{ranks} exceeds the {rows} rows of the store: give at most "
                f"{rows // self.world}"
            )

    def _settings(self) -> dict[str, Any]:
        return {
            "rows": len(self.store),
            "batch": self.batch,
            "seed": self.seed,
            "world": self.world,
            "store": self.store.digest,
        }

    def _in_epoch(self, epoch: int) -> Permutation:
        if self._order[0] != epoch:
            self._order = (epoch, Permutation(len(self.store), self.seed, "epoch", epoch))
        return self._order[1]
