"""Where the shards of a place go: a folder, which may hold some of them already, or memory."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparsecraft.core.errors import InvalidValue, StoreError
from sparsecraft.model.activation_store.contents import Contents, HarvestReport
from sparsecraft.model.activation_store.inputs import Source
from sparsecraft.model.activation_store.pieces import COUNTS, Piece
from sparsecraft.model.activation_store.settings import HarvestSettings
from sparsecraft.model.activation_store.shards import (
    Index,
    damage,
    open_contents,
    read_index,
    remove_halves,
    write_shard,
)
from sparsecraft.model.activation_store.table import Shard, Table
from sparsecraft.model.hook_points import HookPoint


@dataclass
class Sink:
    """Where the shards of one place go: a folder, or memory.

    Args:
        point: The place.
        index: What is there.
        folder: None in memory.
        made: The shards in memory.
        damaged: Numbers of shards that must be made anew.
        kept: Shards that were there.
        remade: Damaged shards that were made anew.
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

    def begins_at(self, number: int) -> bool:
        """Returns whether this shard has never been made."""
        return number >= len(self.index.shards)

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


def folder_of(path: str | Path | None, point: HookPoint, each: bool) -> Path | None:
    """Returns the folder of a place, or None for memory."""
    if path is None:
        return None
    return Path(path) / re.sub(r"[^\w.-]", "_", point.name) if each else Path(path)


def sink_of(
    point: HookPoint,
    folder: Path | None,
    target: HookPoint | None,
    source: Source,
    settings: HarvestSettings,
    facts: dict[str, str],
    lens: Mapping[str, str],
) -> Sink:
    """Returns the sink of a place, with what its folder holds already.

    Args:
        point: The place.
        folder: Of its shards, or None for memory.
        target: The place of a transcoder's targets, or None.
        source: What the model reads.
        settings: Of the harvest.
        facts: About the model.
        lens: TransformerLens' names of places.

    Raises:
        StoreError: If the folder holds something else.
    """
    asked = {
        **settings.plain(source.special),
        **facts,
        "place": point.place,
        "target_place": None if target is None else target.place,
    }
    if settings.gradients and target is not None:
        asked["gradient_place"] = target.place
    info = {
        **asked,
        "hook": point.name,
        "hook_out": None if target is None else target.name,
        "prepend_bos": source.begins_with_bos,
        "tokenizer": str(getattr(source.tokenizer, "name_or_path", "") or ""),
    }
    del info["target_place"]
    info["lens_hook"] = lens.get(point.place)
    if target is not None:
        info |= {"place_out": target.place, "lens_hook_out": lens.get(target.place)}
    if folder is None:
        return Sink(point, Index(asked, info), None)
    remove_halves(folder)
    index = read_index(folder)
    if index is None and folder.exists() and any(folder.iterdir()):
        raise StoreError(f"{folder} holds other files, so they are kept: give another path")
    if index is None or not index.shards:
        index = Index(asked, info)
        index.write(folder)
        return Sink(point, index, folder)
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


def differs(sink: Sink, context: int, how: str) -> str:
    """Returns the message for a text that is not the one of an earlier harvest."""
    return (
        f"the text {how} what {sink.folder} was made of, from context {context} on: give the same "
        "text, or another path"
    )


def finished(sink: Sink, source: Source, settings: HarvestSettings) -> Contents:
    """Returns the contents of a sink that has everything, and marks its folder as complete."""
    shards = sink.index.shards
    rows = sum(shard["rows"] for shard in shards)
    if not rows:
        raise InvalidValue(
            f"{sink.point.name}: no rows: there was nothing to read, or all of it was special "
            "tokens, padding or not finite"
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
        info = {**sink.index.info, "context": table.longest}
        return Contents(table, sink.index.digest, sink.point.name, info, report)
    sink.index.write(sink.folder)
    return open_contents(sink.folder)


def _size(sink: Sink) -> int:
    if sink.folder is None:
        parts = [t for shard in sink.made for t in shard.parts().values()]
        return sum(t.numel() * t.element_size() for t in parts)
    return sum(f["bytes"] for shard in sink.index.shards for f in shard["files"].values())
