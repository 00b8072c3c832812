"""Some whole contexts of a table, and the numbers of their rows."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from sparsecraft.core import seeds
from sparsecraft.core.errors import InvalidValue
from sparsecraft.model.activation_store.table import Table


class Selection:
    """Contexts of a table, whose rows are numbered through from 0.

    Args:
        table: The rows.
        contexts: int64 (contexts,), ascending; None for all.
    """

    def __init__(self, table: Table, contexts: Tensor | None = None) -> None:
        self.table, self.contexts = table, contexts
        self._starts = table.context_starts
        if contexts is not None:
            counts = self._starts.diff()[contexts]
            self._starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def count(self) -> int:
        """How many contexts there are."""
        return len(self._starts) - 1

    def context_of(self, index: Tensor) -> Tensor:
        """Returns int64 (n,): the context of each row; one without rows is nobody's."""
        return torch.searchsorted(self._starts, index, right=True) - 1

    def in_table(self, index: Tensor) -> Tensor:
        """Returns int64 (n,): the numbers that rows have in the table."""
        if self.contexts is None:
            return index
        context = self.context_of(index)
        first = self.table.context_starts[self.contexts[context]]
        return first + index - self._starts[context]

    @cached_property
    def tokens(self) -> Tensor | None:
        """The token ids of the contexts, or None; see `Table.tokens`."""
        found = self.table.tokens
        return found if found is None or self.contexts is None else found[self.contexts]

    def split(self, held_out: float, seed: int) -> tuple[Selection, Selection]:
        """Returns what is left, and contexts held out at random; see `ActivationStore.split`.

        Raises:
            InvalidValue: If one of the two would be empty.
        """
        if not 0 < held_out < 1 or self.count < 2:
            raise InvalidValue(
                f"held_out={held_out} of {self.count} contexts is not allowed: give a share "
                "between 0 and 1, and at least two contexts"
            )
        out = min(max(1, round(held_out * self.count)), self.count - 1)
        shuffled = torch.randperm(self.count, generator=seeds.generator(seed, "held out"))
        here = torch.arange(self.count) if self.contexts is None else self.contexts
        first = Selection(self.table, here[shuffled[out:].sort().values])
        second = Selection(self.table, here[shuffled[:out].sort().values])
        if not len(first) or not len(second):
            raise InvalidValue(
                f"held_out={held_out} leaves a part without rows: some contexts have none; give "
                "another share or more text"
            )
        return first, second
