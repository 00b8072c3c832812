"""The files of a store: raw little-endian numbers, and an index that says what they are.

A shard is some whole contexts in a few files, one for each part. It counts when the index names it,
which is written last: a run that is stopped leaves whole shards, and files that the next one
replaces.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsecraft import __version__
from sparsecraft.core.errors import StoreError
from sparsecraft.model.activation_store.contents import Contents, HarvestReport
from sparsecraft.model.activation_store.table import Shard, Table
from sparsecraft.model.digests import digest
from sparsecraft.model.files import write_atomic

FORMAT = 1
INDEX = "activation_store.json"
AGAIN = (
    "Harvest again into this path, ActivationStore(model, ..., path=...), as before: only what is "
    "missing is made."
)


@dataclass
class Index:
    """What the index file says.

    Args:
        settings: What the store was made with; a harvest that goes on must have the same.
        info: Where the activations come from.
        shards: For each shard its files and counts.
        report: The harvest's report, when it is complete.
    """

    settings: dict[str, Any]
    info: dict[str, Any]
    shards: list[dict[str, Any]] = field(default_factory=list)
    report: dict[str, Any] | None = None

    def write(self, folder: Path) -> None:
        """Writes the index, whole or not at all."""
        content = {"format": FORMAT, "sparsecraft": __version__, **vars(self)}
        write_atomic(folder / INDEX, json.dumps(content, indent=1) + "\n")

    @property
    def digest(self) -> str:
        """A hash of settings and inputs."""
        inputs = [shard["inputs"] for shard in self.shards]
        return digest([("settings", sorted(self.settings.items())), ("inputs", inputs)])


def read_index(folder: Path) -> Index | None:
    """Returns the index of a folder, or None if there is none.

    Raises:
        StoreError: If it is damaged or of a format that is not known here.
    """
    path = folder / INDEX
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise StoreError(
                f"{path} has the format {content['format']}, this version reads {FORMAT}: use the "
                f"version of sparsecraft that wrote it ({content.get('sparsecraft')})"
            )
        names = ("settings", "info", "shards", "report")
        return Index(*(content[name] for name in names))
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise StoreError(
            f"{path} is damaged ({type(error).__name__}: {error}). Restore it from a copy, or "
            "remove the folder and harvest again."
        ) from error


def write_shard(folder: Path, number: int, shard: Shard) -> dict[str, Any]:
    """Writes the files of a shard; returns what the index says of them."""
    files = {}
    for part, tensor in shard.parts().items():
        name = f"{part}-{number:05d}.bin"
        raw = tensor.contiguous().view(-1).view(torch.uint8).numpy().data
        write_atomic(folder / name, raw)  # type: ignore[arg-type]  # it writes any buffer
        files[part] = {
            "name": name,
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
            "bytes": raw.nbytes,
            "digest": hashlib.blake2b(raw, digest_size=16).hexdigest(),
        }
    return files


def remove_halves(folder: Path) -> None:
    """Removes what writes that were stopped left behind."""
    for path in folder.glob(".*.bin.*"):
        path.unlink(missing_ok=True)
    for path in folder.glob(f".{INDEX}.*"):
        path.unlink(missing_ok=True)


def damage(folder: Path, files: Mapping[str, Any]) -> str:
    """Returns what is wrong with the files of a shard by their size, "" if nothing is."""
    for file in files.values():
        path = folder / file["name"]
        if not path.is_file():
            return f"{path} is missing"
        size = path.stat().st_size
        if size != file["bytes"]:
            how = "cut short" if size < file["bytes"] else "too long"
            return f"{path} is {how}: it has {size} bytes, and {file['bytes']} were written"
    return ""


def open_shard(folder: Path, files: Mapping[str, Any]) -> Shard:
    """Returns a shard mapped from its files.

    Raises:
        StoreError: If a file is missing or has another size.
    """
    wrong = damage(folder, files)
    if wrong:
        raise StoreError(f"{wrong}. {AGAIN}")
    return Shard(**{part: _mapped(folder, file) for part, file in files.items()})


def open_contents(folder: Path) -> Contents:
    """Returns what a complete store holds.

    Raises:
        StoreError: If there is no store, it is not complete, or a file is missing or cut short.
    """
    index = read_index(folder)
    if index is None:
        inside = ""
        if folder.is_dir():
            inner = sorted(p.name for p in folder.iterdir() if (p / INDEX).is_file())
            inside = f" It has the stores {', '.join(inner)}: open one of them." if inner else ""
        raise StoreError(f"there is no activation store in {folder}: {INDEX} is missing.{inside}")
    if index.report is None:
        raise StoreError(
            f"the store in {folder} was stopped after {len(index.shards)} shards. {AGAIN}"
        )
    table = Table([open_shard(folder, shard["files"]) for shard in index.shards])
    report = HarvestReport(**{**index.report, "remarks": tuple(index.report["remarks"])})
    info = {**index.info, "context": table.longest}
    return Contents(table, index.digest, info["hook"], info, report, folder)


def verify(folder: Path) -> None:
    """Compares all files with the digests that were written with them.

    Raises:
        StoreError: Naming the first file that differs.
    """
    index = read_index(folder)
    for shard in index.shards if index else ():
        wrong = damage(folder, shard["files"])
        for file in shard["files"].values():
            path = folder / file["name"]
            if wrong or _digest(path) != file["digest"]:
                raise StoreError(
                    f"{wrong or f'{path} was changed after it was written'}. Remove that file, "
                    f"and: {AGAIN}"
                )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _mapped(folder: Path, file: Mapping[str, Any]) -> Tensor:
    if sys.byteorder != "little":
        raise StoreError("the files of a store are little-endian, and this machine is not")
    dtype = getattr(torch, file["dtype"])
    shape = file["shape"]
    size = 1
    for extent in shape:
        size *= extent
    if size == 0:
        return torch.empty(shape, dtype=dtype)
    path = str(folder / file["name"])
    return torch.from_file(path, shared=False, size=size, dtype=dtype).view(shape)
