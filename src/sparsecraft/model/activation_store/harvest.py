"""Runs the model over the text once, and writes what comes out shard by shard.

A harvest into a folder goes on where it stopped. The text is read from its beginning each time and
compared with what each shard was made of; only shards that are not there are given to the model.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsecraft.core.errors import InvalidValue, SparsityError, StoreError
from sparsecraft.model.activation_store.contents import Contents
from sparsecraft.model.activation_store.inputs import Inputs, Source, source_of
from sparsecraft.model.activation_store.pieces import Keeper, Piece
from sparsecraft.model.activation_store.recorder import Recorder, recording
from sparsecraft.model.activation_store.settings import HarvestSettings, model_facts
from sparsecraft.model.activation_store.shards import open_contents
from sparsecraft.model.activation_store.sinks import Sink, differs, finished, folder_of, sink_of
from sparsecraft.model.hook_points import HookPoint, hook_point, lens_names
from sparsecraft.model.ranks import by_first_rank


def harvest(
    model: nn.Module,
    at: Sequence[str],
    *,
    to: str | None = None,
    path: str | Path | None = None,
    one_folder_each: bool = False,
    **options: Any,
) -> dict[str, Contents]:
    """Returns the contents of a store for each hook point.

    Of several processes the first one writes the folder, while the others wait for it.

    Args:
        model: The model.
        at: Hook points.
        to: A hook point whose activations are the targets, or None.
        path: A folder, or None for memory.
        one_folder_each: Whether each hook point has a folder of its own in it.
        options: Of `HarvestSettings`.

    Raises:
        InvalidValue, NonFinite, StoreError, UnknownName: See `ActivationStore`.
    """
    points = [hook_point(model, name) for name in at]
    if not points or len({point.place for point in points}) < len(points):
        raise InvalidValue(f"at={list(at)} must name at least one place, and none twice")
    target = None if to is None else hook_point(model, to)
    settings = HarvestSettings(**options)
    folders = [folder_of(path, point, one_folder_each) for point in points]
    if path is None:
        return _harvested(model, points, target, folders, settings)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return by_first_rank(
        lambda: _harvested(model, points, target, folders, settings),
        lambda: {name: open_contents(f) for name, f in zip(at, folders, strict=True) if f},
        device,
    )


def _harvested(
    model: nn.Module,
    points: Sequence[HookPoint],
    target: HookPoint | None,
    folders: Sequence[Path | None],
    settings: HarvestSettings,
) -> dict[str, Contents]:
    source = source_of(model, settings)
    facts, lens = model_facts(model), lens_names(model)
    sinks = [
        sink_of(point, folder, target, source, settings, facts, lens)
        for point, folder in zip(points, folders, strict=True)
    ]
    watched = [*points, *([] if target is None else [target])]
    unique = list({point.place: point for point in watched}.values())
    # Directions of a decoder act on what is reconstructed, so the gradient is that of the target.
    gradients = ([target] if target is not None else points) if settings.gradients else []
    with recording(model, unique, gradients=gradients, loss=settings.loss) as recorder:
        keeper = Keeper(points, target, source, settings)
        _Harvest(recorder, keeper, source, sinks, settings).run()
    return {sink.point.name: finished(sink, source, settings) for sink in sinks}


@dataclass
class _Harvest:
    """One pass over the source."""

    recorder: Recorder
    keeper: Keeper
    source: Source
    sinks: Sequence[Sink]
    settings: HarvestSettings
    contexts: int = 0
    rows: int = 0
    told: bool = False
    failure: SparsityError | None = None
    held: tuple[Inputs, Piece] | None = None  # too large for the shard before

    def run(self) -> None:
        """Makes every shard that is lacking."""
        stream = self.source.batches
        number = 0
        while not self._enough():
            known = next(
                (s.index.shards[number] for s in self.sinks if not s.begins_at(number)), None
            )
            lacking = [sink for sink in self.sinks if sink.lacks(number)]
            if known is None:
                done = next((s for s in self.sinks if s.index.report is not None), None)
                if done is not None and next(stream, None) is not None:
                    raise StoreError(differs(done, self.contexts, "goes on behind"))
                piece, inputs = self._fill(stream)
                if not piece.batches:
                    break
            else:
                piece, inputs = self._repeat(stream, known, make=bool(lacking))
            for sink in lacking:
                sink.add(number, piece, inputs)
            for sink in self.sinks:
                sink.kept += sink not in lacking
            shown = known or {"contexts": piece.contexts, "rows": piece.rows}
            self.contexts += shown["contexts"]
            self.rows += shown["rows"]
            self._tell()
            number += 1
            if self.failure is not None:
                raise self.failure

    def _enough(self) -> bool:
        return self.settings.rows is not None and self.rows >= self.settings.rows

    def _fill(self, stream: Iterator[Inputs]) -> tuple[Piece, str]:
        """Returns the next shard's piece: as many batches as fit into it."""
        piece, made = Piece(), hashlib.blake2b(digest_size=16)
        while (found := self._next(stream, piece)) is not None:
            inputs, batch = found
            self._check_size(batch)
            if piece.batches and piece.bytes() + batch.bytes() > self.settings.shard_bytes:
                self.held = found
                break
            piece.add(batch)
            inputs.update(made)
            self._tell(piece)
            if self.settings.rows is not None and self.rows + piece.rows >= self.settings.rows:
                break
        return piece, made.hexdigest()

    def _next(self, stream: Iterator[Inputs], before: Piece) -> tuple[Inputs, Piece] | None:
        """Returns the next batch, or None behind the last.

        An error is kept, to be raised when the batches before it are written.
        """
        if self.held is not None:
            found, self.held = self.held, None
            return found
        try:
            inputs = next(stream, None)
            return None if inputs is None else (inputs, self._piece(inputs, before))
        except SparsityError as error:
            if not before.batches:
                raise
            self.failure = error
            return None

    def _repeat(
        self, stream: Iterator[Inputs], known: dict[str, Any], *, make: bool
    ) -> tuple[Piece, str]:
        """Reads what a shard was made of, and gives it to the model only if it is to be made."""
        piece, made = Piece(), hashlib.blake2b(digest_size=16)
        for _ in range(known["batches"]):
            inputs = next(stream, None)
            if inputs is None:
                raise StoreError(differs(self.sinks[0], self.contexts, "ends before"))
            inputs.update(made)
            if make:
                piece.add(self._piece(inputs, piece))
        if made.hexdigest() != known["inputs"]:
            raise StoreError(differs(self.sinks[0], self.contexts, "differs from"))
        return piece, known["inputs"]

    def _piece(self, inputs: Inputs, before: Piece) -> Piece:
        recorded = self.recorder.run(inputs, self.keeper.wanted(inputs)[0])
        most = None if self.settings.rows is None else self.settings.rows - self.rows - before.rows
        return self.keeper.piece(inputs, recorded, self.contexts + before.contexts, most)

    def _check_size(self, batch: Piece) -> None:
        """Says what the whole will take, once; raises if it does not fit."""
        folder = next((s.folder for s in self.sinks if s.folder is not None), None)
        if folder is None or self.told:
            return
        limit = self.settings.shard_bytes
        if batch.bytes() > limit:
            raise InvalidValue(
                f"one batch of {batch.contexts} contexts makes {batch.bytes() / 1e6:,.1f} MB, and "
                f"a shard takes {limit / 1e6:,.1f} MB: give a smaller batch_size"
            )
        self.told = True
        need = self._estimate(batch)
        free = shutil.disk_usage(folder).free
        if need is not None and need > free:
            raise StoreError(
                f"the store would take about {need / 1e9:,.1f} GB, and {folder} has "
                f"{free / 1e9:,.1f} GB left: give fewer rows, dtype=torch.bfloat16, or another path"
            )
        if need is not None and self.settings.progress is not None:
            said = f"about {need / 1e6:,.1f} MB to {folder}"
            self.settings.progress(said, self.rows, self._total() or 0)

    def _estimate(self, batch: Piece) -> int | None:
        total = self._total(batch)
        if total is None or not batch.rows:
            return None
        each = sum(
            rows.numel() * rows.element_size()
            for of_place in batch.parts.values()
            for part in of_place.values()
            for rows in part
        )
        return round(each / batch.rows * max(0, total - self.rows))

    def _total(self, seen: Piece | None = None) -> int | None:
        """Returns the rows that are expected in all."""
        contexts = self.contexts + (seen.contexts if seen else 0)
        rows = self.rows + (seen.rows if seen else 0)
        expected = self.source.expected
        found = None if not expected or not contexts else round(expected * rows / contexts)
        if self.settings.rows is not None:
            return self.settings.rows if found is None else min(found, self.settings.rows)
        return found

    def _tell(self, piece: Piece | None = None) -> None:
        if self.settings.progress is not None:
            rows = self.rows + (piece.rows if piece else 0)
            self.settings.progress("activations", rows, max(rows, self._total(piece) or 0))
