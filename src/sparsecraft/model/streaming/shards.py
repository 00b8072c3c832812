"""The tensors of a model directory, read from the byte ranges that the files' headers name."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from sparsecraft.core.errors import CheckpointError
from sparsecraft.model.checkpoints import MASKS, check_directory
from sparsecraft.model.streaming.raw_files import bytes_of, read_at

INDEX = "model.safetensors.index.json"
TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Names of safetensors to the types of torch that are read; others are only copied."""
TYPE_NAMES = {dtype: name for name, dtype in TYPES.items()}


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies.

    Args:
        name: Its key.
        file: The file that holds it.
        type: Its type as safetensors names it.
        shape: Its shape.
        start: Offset of its first byte in the file.
        stop: Offset behind its last byte.
    """

    name: str
    file: Path
    type: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def dtype(self) -> torch.dtype:
        """Its type.

        Raises:
            CheckpointError: If it is one that cannot be computed with here.
        """
        if self.type not in TYPES:
            raise CheckpointError(
                f"{self.name} is of the type {self.type}, which cannot be pruned. Give a model "
                "in float32, bfloat16 or float16."
            )
        return TYPES[self.type]


@dataclass(frozen=True)
class Shards:
    """All tensors of a directory.

    Args:
        directory: The model directory.
        files: Its safetensors files, in order of their names.
        entries: Key to place.
        digests: File name to the digest of its header.
    """

    directory: Path
    files: tuple[Path, ...]
    entries: Mapping[str, Entry]
    digests: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, directory: Path) -> Shards:
        """Returns the tensors of a directory; only headers are read.

        Raises:
            CheckpointError: If it is no model directory, or a file is damaged.
        """
        check_directory(directory)
        files = weight_files(directory)
        entries: dict[str, Entry] = {}
        digests: dict[str, str] = {}
        for file in files:
            found, digests[file.name] = read_header(file)
            entries |= found
        return cls(directory, files, entries, digests)

    def read(self, name: str, into: Tensor) -> None:
        """Fills a tensor, or a view of one, with what is stored, converted to its type.

        Raises:
            CheckpointError: If shapes differ or the file cannot be read.
        """
        entry = self.entries[name]
        if tuple(into.shape) != entry.shape:
            raise CheckpointError(
                f"{entry.file}: {name} has the shape {entry.shape}, where the model has "
                f"{tuple(into.shape)}"
            )
        direct = into.is_contiguous() and into.dtype == entry.dtype
        buffer = into if direct else torch.empty(entry.shape, dtype=entry.dtype)
        if buffer.numel():
            read_at(entry.file, entry.start, bytes_of(buffer))
        if not direct:
            into.copy_(buffer)

    def identity(self) -> dict[str, str]:
        """Returns what changes when a file does: size, time of change and header, by name."""
        made = {}
        for file in self.files:
            stat = file.stat()
            made[file.name] = f"{stat.st_size}-{stat.st_mtime_ns}-{self.digests[file.name]}"
        return made


def weight_files(directory: Path) -> tuple[Path, ...]:
    """Returns the safetensors files of a model: those of its index, or its only one."""
    index = directory / INDEX
    if index.is_file():
        names = set(json.loads(index.read_text())["weight_map"].values())
        return tuple(directory / name for name in sorted(names))
    single = directory / "model.safetensors"
    if single.is_file():
        return (single,)
    return tuple(p for p in sorted(directory.glob("*.safetensors")) if p.name != MASKS)


def read_header(file: Path) -> tuple[dict[str, Entry], str]:
    """Returns (key to entry, digest of the header) of a whole safetensors file."""
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        text = opened.read(length)
    base = 8 + length
    entries = {}
    for name, each in json.loads(text).items():
        if name == "__metadata__":
            continue
        start, stop = each["data_offsets"]
        shape = tuple(each["shape"])
        entries[name] = Entry(name, file, each["dtype"], shape, base + start, base + stop)
    return entries, hashlib.blake2b(text, digest_size=8).hexdigest()


def new_layout(
    tensors: Mapping[str, tuple[str, tuple[int, ...], int]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """Returns (header, offset of each tensor) of a safetensors file that is to be written.

    Args:
        tensors: Name to (type, shape, bytes); all of one type, so that they lie by name.
        metadata: Texts for the header.
    """
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    starts = {}
    for name, (kind, shape, size) in sorted(tensors.items()):
        header[name] = {
            "dtype": kind,
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        starts[name] = offset
        offset += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    base = 8 + len(text)
    return struct.pack("<Q", len(text)) + text, {name: base + at for name, at in starts.items()}
