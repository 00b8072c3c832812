"""Activations that the model makes while a training reads them: no disk, at the price of the model.

A stored harvest is read as often as one likes and in perfectly random order, and takes room for
every row: a thousand million activations of 768 entries are three terabytes. Here a buffer of some
rows is held, filled up from the text where half of it is read, and mixed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.model.activation_store.harvest import harvest
from sparsecraft.model.activation_store.inputs import source_of
from sparsecraft.model.activation_store.live_reader import LiveReader, Window
from sparsecraft.model.activation_store.pieces import Keeper
from sparsecraft.model.activation_store.recorder import recording
from sparsecraft.model.activation_store.selection import Selection
from sparsecraft.model.activation_store.settings import HarvestSettings
from sparsecraft.model.activation_store.store import ActivationStore
from sparsecraft.model.digests import digest
from sparsecraft.model.hook_points import hook_point

Tag = TypeVar("Tag")
Put = Callable[[Window, Tag, dict[str, Tensor]], None]
_STORED_ONLY = ("path", "rows", "shard_bytes", "skip_non_finite")


class LiveActivations(ActivationStore):
    """A store whose reader runs the model, in place of one that was harvested whole.

    The first contexts are kept in memory as an ordinary store: `sample`, `rows`, `scale`, `len` and
    all else but `reader` speak of them. `split` holds out the first half of them, which the
    stream then never gives; the second half stands for the stream where rows are to be had at
    random. Everything is a function of the seed, also after a training went on from a checkpoint:
    the text is then counted through again, and the model run only on what the buffer held.

    Args:
        model: A Hugging Face model or any module that reads tokens.
        at: A hook point with a row for each token.
        to: A second one, for a transcoder's targets.
        buffer_rows: Rows that each rank holds at most; more mix better.
        kept_rows: Rows of the first contexts that are kept.
        options: As of `ActivationStore`, without path, rows, shard_bytes and skip_non_finite.
            Texts must be such that they can be read from their beginning again: a list, a file's
            path, an object whose `__iter__` starts anew.

    Raises:
        InvalidValue: If the text can be read only once, or half the buffer does not hold a batch.
        NonFinite: For NaN or infinite activations or gradients, at any step.

    Example:
        >>> model = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 8))
        >>> tokens = torch.arange(40).view(10, 4)
        >>> live = LiveActivations(model, at="0", tokens=tokens, buffer_rows=32, batch_size=2)
        >>> train, held_out = live.split()
        >>> next(train.reader(batch=16)).x.shape, held_out.contexts
        (torch.Size([16, 8]), 5)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        at: str,
        to: str | None = None,
        buffer_rows: int = 2**18,
        kept_rows: int = 2**17,
        **options: Any,
    ) -> None:
        surplus = [name for name in _STORED_ONLY if name in options]
        if surplus:
            raise InvalidValue(
                f"{', '.join(surplus)} is for what is stored, and nothing is here: leave it out, "
                "or make an ActivationStore"
            )
        for name in ("texts", "batches"):
            if isinstance(options.get(name), Iterator):
                raise InvalidValue(
                    f"{name} is an iterator, which can be read only once: give a list, a file's "
                    "path, or an object whose __iter__ begins anew"
                )
        if buffer_rows < 2:
            raise InvalidValue(f"buffer_rows={buffer_rows} is not allowed: give at least 2")
        settings = HarvestSettings(**options)
        (contents,) = harvest(model, [at], to=to, rows=kept_rows, **options).values()
        self._fill(contents)
        if self.tokens is None:
            raise InvalidValue("live activations need a model that reads tokens: store these")
        self.buffer_rows = buffer_rows
        self._model = model
        self._point = hook_point(model, at)
        self._target = None if to is None else hook_point(model, to)
        tokenizer = source_of(model, settings).tokenizer  # looked up once, not in each epoch
        self._settings = dataclasses.replace(settings, tokenizer=tokenizer, progress=None)
        self._held_out = 0

    def split(
        self, held_out: float = 0.1, seed: int = 0
    ) -> tuple[LiveActivations, ActivationStore]:
        """Returns the stream without its first contexts, and a store of these.

        Args:
            held_out: Has no say: of a stream without an end no share can be taken.
            seed: Has none, either.

        Raises:
            InvalidValue: If one of the two would be empty.
        """
        held = self._held_out + self.contexts // 2
        every = torch.arange(self._held_out, self._held_out + self.contexts)
        first, second = (
            Selection(self._table, part) for part in (every[every < held], every[every >= held])
        )
        if not len(first) or not len(second):
            raise InvalidValue("half of the kept contexts have no rows: give more kept_rows")
        rest = LiveActivations.__new__(LiveActivations)
        vars(rest).update(vars(self))
        rest._fill(self._contents, second)
        rest._held_out = held
        return rest, ActivationStore._of(self._contents, first)

    def reader(self, batch: int, seed: int = 0, rank: int = 0, world: int = 1) -> LiveReader:
        """Returns an endless iterator of batches, for which the model is run."""
        return LiveReader(self, batch, seed, rank, world)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next((p.device for p in self._model.parameters()), torch.device("cpu"))

    @property
    def digest(self) -> str:
        """A hash of the model, the place, the settings, and the text of the kept contexts."""
        return digest([("live", (super().digest, self.buffer_rows))])

    def windows(self) -> Iterator[Window]:
        """Yields the batches of the text that have rows, epoch after epoch, without running it."""
        number = epoch = 0
        while True:
            keeper, first, before = self._keeper(), 0, number
            for inputs in keeper.source.batches:
                keep, _ = keeper.wanted(inputs)
                if keep is None:
                    raise InvalidValue("a batch has no token ids: give input_ids, or store these")
                drop = int(keep[: max(0, self._held_out - first)].sum())
                rows = int(keep.sum()) - drop
                if rows:
                    yield Window(number, epoch, inputs, first, drop, rows)
                    number += 1
                first += len(keep)
            if number == before:
                raise InvalidValue(
                    f"behind the {self._held_out} contexts that are held out the text gives no "
                    "rows: give more text, or fewer kept_rows"
                )
            epoch += 1

    def run(self, windows: Iterable[tuple[Window, Tag]], put: Put[Tag]) -> None:
        """Runs the model on batches.

        Args:
            windows: Batches, each with something that is handed on.
            put: Called for each with both, and its kept rows by "x", "gradient", "target".
        """
        keeper, settings = self._keeper(), self._settings
        points = [self._point, *([] if self._target is None else [self._target])]
        unique = list({point.place: point for point in points}.values())
        gradients = points[-1:] if settings.gradients else []
        with (
            torch.set_grad_enabled(bool(gradients)),
            recording(self._model, unique, gradients=gradients, loss=settings.loss) as recorder,
        ):
            for window, tag in windows:
                recorded = recorder.run(window.inputs, keeper.wanted(window.inputs)[0])
                piece = keeper.piece(window.inputs, recorded, window.first, None)
                if piece.rows != window.drop + window.rows:
                    raise InvalidValue(
                        f"{self._point.name} gives {piece.rows} rows for the "
                        f"{window.drop + window.rows} tokens of a batch: live activations need a "
                        "place with a row for each token; store these"
                    )
                parts = piece.parts[self._point.place]
                put(window, tag, {name: rows[0] for name, rows in parts.items()})

    def _keeper(self) -> Keeper:
        source = source_of(self._model, self._settings)
        return Keeper([self._point], self._target, source, self._settings)
