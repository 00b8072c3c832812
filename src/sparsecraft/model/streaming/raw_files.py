"""Reading and writing ranges of bytes, with a small buffer and without mapping files.

A mapped file counts as private memory of the process where it is opened for writing or through
torch, so a shard of several gigabytes could not be opened under a limit below its size.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import torch
from torch import Tensor

CHUNK = 8 * 2**20
"""Bytes that are copied at a time."""
_NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


def bytes_of(tensor: Tensor) -> memoryview:
    """Returns the memory of a contiguous CPU tensor, writable."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def read_at(path: Path, offset: int, into: memoryview) -> None:
    """Fills a buffer with the bytes of a file from an offset on.

    Raises:
        OSError: If the file ends before.
    """
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        done = 0
        while done < len(into):
            count = file.readinto(into[done:])
            if not count:
                raise OSError(errno.EIO, f"{path} ends {len(into) - done} bytes too early")
            done += count


def write_at(path: Path, offset: int, data: bytes | memoryview) -> None:
    """Writes bytes into a file that exists, from an offset on."""
    handle = os.open(path, os.O_WRONLY)
    try:
        view, done = memoryview(data), 0
        while done < len(view):
            done += os.pwrite(handle, view[done:], offset + done)
    finally:
        os.close(handle)


def copy_range(source: Path, start: int, stop: int, target: Path) -> None:
    """Copies the bytes from start to stop to the same place of another file."""
    buffer = memoryview(bytearray(min(CHUNK, stop - start)))
    for offset in range(start, stop, CHUNK):
        part = buffer[: min(CHUNK, stop - offset)]
        read_at(source, offset, part)
        write_at(target, offset, part)


def reserve(path: Path, size: int) -> None:
    """Makes a file of this size, or gives one that exists this size, and takes the disk space.

    Raises:
        OSError: If the disk is too full for it.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        os.ftruncate(handle, size)
        if size and hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(handle, 0, size)
            except OSError as error:
                if error.errno not in _NOT_SUPPORTED:
                    raise
    finally:
        os.close(handle)


def sync(path: Path) -> None:
    """Waits until the content of a file is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
