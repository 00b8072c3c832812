"""The shards that are written: same files, keys, types and headers as those that were read.

A pruned tensor has the size of the dense one, so every file is given its whole size at the start
and tensors are written where they belong, in any order; writing one again changes nothing. That is
what makes a run that was killed at any moment go on to the same bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from sparsecraft.core.mask import Mask, pack_bits
from sparsecraft.model.checkpoints import MASKS
from sparsecraft.model.streaming.raw_files import bytes_of, copy_range, reserve, sync, write_at
from sparsecraft.model.streaming.shards import INDEX, Entry, Shards, new_layout


class OutputShards:
    """The weights of the pruned model on disk.

    Args:
        shards: The weights of the dense one.
        folder: Where the files go.
    """

    def __init__(self, shards: Shards, folder: Path) -> None:
        self.shards, self.folder = shards, folder
        self._written: set[Path] = set()

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.shards.files)

    def prepare(self) -> None:
        """Makes every file with its header and takes its space on the disk.

        Raises:
            OSError: If the disk is too full.
        """
        for file in self.shards.files:
            target = self.folder / file.name
            reserve(target, file.stat().st_size)
            copy_range(file, 0, self._data_begins(file), target)
        index = self.shards.directory / INDEX
        if index.is_file():
            shutil.copyfile(index, self.folder / INDEX)

    def copy(self, names: Iterable[str]) -> None:
        """Copies tensors through as they are."""
        for name in names:
            entry = self.shards.entries[name]
            copy_range(entry.file, entry.start, entry.stop, self._target(entry))

    def write(self, name: str, tensor: Tensor) -> None:
        """Writes a tensor, converted to the type that it is stored in."""
        entry = self.shards.entries[name]
        data = tensor.detach().to("cpu", entry.dtype).contiguous()
        write_at(self._target(entry), entry.start, bytes_of(data))

    def sync(self) -> None:
        """Waits until everything written is on the disk."""
        for path in self._written:
            sync(path)
        self._written.clear()

    def _target(self, entry: Entry) -> Path:
        path = self.folder / entry.file.name
        self._written.add(path)
        return path

    def _data_begins(self, file: Path) -> int:
        starts = [e.start for e in self.shards.entries.values() if e.file == file]
        return min(starts, default=file.stat().st_size)


class OutputMasks:
    """The mask file of the pruned model, one bit an entry, written parameter by parameter.

    Args:
        shapes: Parameter name to shape, of all that have a target.
        folder: Where the file goes.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], folder: Path) -> None:
        self.shapes, self.path = shapes, folder / MASKS
        sizes = {name: (_bits(shape),) for name, shape in shapes.items()}
        tensors = {name: ("U8", size, size[0]) for name, size in sizes.items()}
        self._header, self._starts = new_layout(tensors, Mask.metadata_of(shapes))
        self.nbytes = len(self._header) + sum(size[0] for size in sizes.values())

    def prepare(self) -> None:
        """Makes the file with its header and takes its space on the disk."""
        reserve(self.path, self.nbytes)
        write_at(self.path, 0, self._header)

    def write(self, name: str, keep: Tensor) -> None:
        """Writes the mask of a parameter, bool of its shape."""
        write_at(self.path, self._starts[name], bytes_of(pack_bits(keep)))

    def sync(self) -> None:
        """Waits until everything written is on the disk."""
        sync(self.path)


def _bits(shape: tuple[int, ...]) -> int:
    entries = 1
    for size in shape:
        entries *= size
    return (entries + 7) // 8
