"""Runs the model over the text once, and writes what comes out shard by shard.

A harvest into a folder goes on where it stopped. The text is read from its beginning each time and
compared with what each shard was made of; only shards that are not there are given to the model.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from sparsecraft.core.errors import InvalidValue, StoreError
from sparsecraft.model.activation_store.contents import Contents, HarvestReport
from sparsecraft.model.activation_store.inputs import Inputs, Source, source_of
from sparsecraft.model.activation_store.pieces import COUNTS, Keeper, Piece
from sparsecraft.model.activation_store.recorder import Recorder, recording
from sparsecraft.model.activation_store.settings import HarvestSettings, model_facts
from sparsecraft.model.activation_store.shards import (
    Index,
    damage,
    open_contents,
    read_index,
    remove_halves,
    write_shard,
)
from sparsecraft.model.activation_store.table import Shard, Table
from sparsecraft.model.hook_points import HookPoint, hook_point


@dataclass
class Sink:
    """Where the shards of one place go: a folder, or memory.

    Args:
        point: The place.
        index: What is there.
        folder: None in memory.
        made: The shards in memory.
        damaged: Numbers of shards that must be made anew.
    """

    point: HookPoint
    index: Index
    folder: Path | None
    made: list[Shard] = field(default_factory=list)
    damaged: set[int] = field(default_factory=set)
    kept: int = 0
    remade: int = 0

    def lacks(self, number: int) -> bool:
        """Returns whether this shard is to be made."""
        return number >= len(self.index.shards) or number in self.damaged

    def add(self, number: int, piece: Piece, inputs: str) -> None:
        """Writes a shard, then the index that names it."""
        shard = piece.shard(self.point.place)
        record = {
            "contexts": piece.contexts,
            "rows": piece.rows,
            "batches": piece.batches,
            "left_out": piece.left_out,
            "inputs": inputs,
            "files": {} if self.folder is None else write_shard(self.folder, number, shard),
        }
        if self.folder is None:
            self.made.append(shard)
        if number < len(self.index.shards):
            self.index.shards[number] = record
            self.damaged.discard(number)
            self.remade += 1
        else:
            self.index.shards.append(record)
        if self.folder is not None:
            self.index.write(self.folder)


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
    settings = HarvestSettings(**options)
    points = [hook_point(model, name) for name in at]
    if not points or len({point.place for point in points}) < len(points):
        raise InvalidValue(f"at={list(at)} must name at least one place, and none twice")
    target = None if to is None else hook_point(model, to)
    source = source_of(model, settings)
    folders = [_folder(path, point, one_folder_each) for point in points]
    facts = model_facts(model)
    sinks = [
        _sink(point, folder, target, source, settings, facts)
        for point, folder in zip(points, folders, strict=True)
    ]
    watched = [*points, *([] if target is None else [target])]
    unique = list({point.place: point for point in watched}.values())
    gradients = points if settings.gradients else []
    with recording(model, unique, gradients=gradients, loss=settings.loss) as recorder:
        keeper = Keeper(points, target, source, settings)
        _Harvest(recorder, keeper, source, sinks, settings).run()
    return {name: _finished(sink, source, settings) for name, sink in zip(at, sinks, strict=True)}


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

    def run(self) -> None:
        stream = self.source.batches
        held: list[Inputs] = []  # read, but too large for the shard before
        number = 0
        while not self._enough():
            known = next((s.index.shards[number] for s in self.sinks if not _new(s, number)), None)
            lacking = [sink for sink in self.sinks if sink.lacks(number)]
            if known is None:
                done = next((s for s in self.sinks if s.index.report is not None), None)
                if done is not None and next(stream, None) is not None:
                    raise StoreError(_differs(done, self.contexts, "goes on behind"))
                piece, inputs = self._fill(stream, held)
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

    def _enough(self) -> bool:
        return self.settings.rows is not None and self.rows >= self.settings.rows

    def _fill(self, stream: Iterator[Inputs], held: list[Inputs]) -> tuple[Piece, str]:
        """Returns the next shard's piece: as many batches as fit into it."""
        piece, made = Piece(), hashlib.blake2b(digest_size=16)
        while (inputs := held.pop() if held else next(stream, None)) is not None:
            batch = self._piece(inputs, piece)
            self._check_size(batch)
            if piece.batches and piece.bytes() + batch.bytes() > self.settings.shard_bytes:
                held.append(inputs)
                break
            piece.add(batch)
            inputs.update(made)
            self._tell(piece)
            if self.settings.rows is not None and self.rows + piece.rows >= self.settings.rows:
                break
        return piece, made.hexdigest()

    def _repeat(
        self, stream: Iterator[Inputs], known: dict[str, Any], *, make: bool
    ) -> tuple[Piece, str]:
        """Reads what a shard was made of, and gives it to the model only if it is to be made."""
        piece, made = Piece(), hashlib.blake2b(digest_size=16)
        for _ in range(known["batches"]):
            inputs = next(stream, None)
            if inputs is None:
                raise StoreError(_differs(self.sinks[0], self.contexts, "ends before"))
            inputs.update(made)
            if make:
                piece.add(self._piece(inputs, piece))
        if made.hexdigest() != known["inputs"]:
            raise StoreError(_differs(self.sinks[0], self.contexts, "differs from"))
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


def _new(sink: Sink, number: int) -> bool:
    return number >= len(sink.index.shards)


def _folder(path: str | Path | None, point: HookPoint, each: bool) -> Path | None:
    if path is None:
        return None
    return Path(path) / re.sub(r"[^\w.-]", "_", point.name) if each else Path(path)


def _sink(
    point: HookPoint,
    folder: Path | None,
    target: HookPoint | None,
    source: Source,
    settings: HarvestSettings,
    facts: dict[str, str],
) -> Sink:
    """Returns the sink of a place, with what its folder holds already.

    Raises:
        StoreError: If the folder holds something else.
    """
    asked = {
        **settings.plain(source.special),
        **facts,
        "place": point.place,
        "target_place": None if target is None else target.place,
    }
    info = {
        **asked,
        "hook": point.name,
        "hook_out": None if target is None else target.name,
        "tokenizer": str(getattr(source.tokenizer, "name_or_path", "") or ""),
    }
    del info["place"], info["target_place"]
    if folder is None:
        return Sink(point, Index(asked, info), None)
    index = read_index(folder)
    if index is None and folder.exists() and any(folder.iterdir()):
        raise StoreError(f"{folder} holds other files, so they are kept: give another path")
    if index is None or not index.shards:
        index = Index(asked, info)
        index.write(folder)
        return Sink(point, index, folder)
    remove_halves(folder)
    _check_same(folder, index.settings, asked)
    damaged = {n for n, shard in enumerate(index.shards) if damage(folder, shard["files"])}
    return Sink(point, index, folder, damaged=damaged)


def _check_same(folder: Path, there: dict[str, Any], asked: dict[str, Any]) -> None:
    # A model's directory may have moved; the digest says whether it is the same model.
    differ = [
        f"{name} is {asked.get(name)!r}, there {there.get(name)!r}"
        for name in sorted(asked.keys() | there.keys())
        if name != "model" and asked.get(name) != there.get(name)
    ]
    if differ:
        raise StoreError(
            f"{folder} holds activations that were made otherwise: {'; '.join(differ)}. Give "
            "another path, or the same settings."
        )


def _differs(sink: Sink, context: int, how: str) -> str:
    return (
        f"the text {how} what {sink.folder} was made of, from context {context} on: give the same "
        "text, or another path"
    )


def _finished(sink: Sink, source: Source, settings: HarvestSettings) -> Contents:
    """Returns the contents of a sink that has everything, and marks its folder as complete."""
    shards = sink.index.shards
    rows = sum(shard["rows"] for shard in shards)
    if not rows:
        raise InvalidValue(
            f"{sink.point.name}: no rows are left: every token was special, padding or not finite"
        )
    remarks = list(source.remarks)
    if settings.rows is not None and rows < settings.rows:
        remarks.append(f"{settings.rows:,} rows were asked for, the text gave {rows:,}")
    left_out = {n: sum(shard["left_out"][n] for shard in shards) for n in COUNTS}
    report = HarvestReport(
        contexts=sum(shard["contexts"] for shard in shards),
        rows=rows,
        bytes=_size(sink),
        kept_shards=sink.kept,
        remade_shards=sink.remade,
        remarks=tuple(remarks),
        **left_out,
    )
    sink.index.info["store_digest"] = sink.index.digest
    sink.index.report = report.to_json()
    if sink.folder is None:
        table = Table(sink.made)
        return Contents(table, sink.index.digest, sink.point.name, sink.index.info, report)
    sink.index.write(sink.folder)
    return open_contents(sink.folder)


def _size(sink: Sink) -> int:
    if sink.folder is None:
        parts = [t for shard in sink.made for t in shard.parts().values()]
        return sum(t.numel() * t.element_size() for t in parts)
    return sum(f["bytes"] for shard in sink.index.shards for f in shard["files"].values())
