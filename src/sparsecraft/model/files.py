"""Writing so that a kill or a full disk leaves either the old file or the new one, never half."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from sparsecraft.core.errors import CheckpointError


def write_atomic(path: Path, data: bytes | str) -> None:
    """Writes a file whole, or leaves what was there.

    Raises:
        CheckpointError: If the disk is full or the folder cannot be written.
    """
    with atomic_file(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Gives a file to write to, which takes the place of `path` when the block ends without error.

    Raises:
        CheckpointError: If the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except OSError as error:
        raise CheckpointError(
            f"could not write {path}: {error.strerror or error}. "
            "What was there before is unchanged."
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Gives a temporary folder that becomes `path` when the block ends without an error.

    Args:
        path: The folder to make.
        overwrite: Whether a folder that exists is replaced; it is removed only after the new one
            is complete.

    Raises:
        CheckpointError: If the folder exists and `overwrite` is False, or the disk is full.
    """
    path = Path(path)
    refuse_existing(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        replace_directory(temporary, path)
    except OSError as error:
        raise CheckpointError(
            f"could not write {path}: {error.strerror or error}. "
            "What was there before is unchanged."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Raises CheckpointError if the path holds something and may not be overwritten."""
    path = Path(path)
    if path.is_file():
        raise CheckpointError(f"{path} is a file; a folder is to be written there")
    if not overwrite and path.exists() and any(path.iterdir()):
        raise CheckpointError(
            f"{path} exists and is not empty, so it is kept. "
            "Choose another folder, or say --overwrite (overwrite=True) to replace it."
        )


def replace_directory(new: Path, path: Path) -> None:
    """Puts a new folder in the place of an old one or of none, in one step where the system can."""
    if not path.exists():
        new.rename(path)
        return
    if _exchange(new, path):
        shutil.rmtree(new, ignore_errors=True)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
    path.rename(old / "kept")
    try:
        new.rename(path)
    except OSError:
        (old / "kept").rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Swaps two paths atomically; returns False where the system has no such call (not Linux)."""
    call = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    if call is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return call(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
