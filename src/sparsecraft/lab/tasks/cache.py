"""Where trained models and generated data are kept, and the hash that tells them apart."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from sparsecraft.core.errors import InvalidValue


def cache_directory() -> Path:
    """Returns the folder of cached models: `SPARSECRAFT_CACHE`, else the platform's own."""
    given = os.environ.get("SPARSECRAFT_CACHE")
    if given:
        return Path(given).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData/Local")) / "sparsecraft"
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/sparsecraft"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparsecraft"


def data_directory(name: str, purpose: str) -> Path:
    """Returns the folder of a data set inside `SPARSECRAFT_DATA`.

    Args:
        name: The folder's name, for example "stories260k".
        purpose: The task that needs it, for the message.

    Raises:
        InvalidValue: If the variable is not set or the folder is not there.
    """
    root = os.environ.get("SPARSECRAFT_DATA")
    if not root:
        raise InvalidValue(
            f"{purpose} needs data that are not in the package. Set the environment variable "
            f"SPARSECRAFT_DATA to the folder that contains {name}/."
        )
    folder = Path(root).expanduser() / name
    if not folder.is_dir():
        raise InvalidValue(
            f"{purpose} needs the folder {name}/ inside SPARSECRAFT_DATA={root}, and it is not "
            "there."
        )
    return folder


def fingerprint(settings: object, *contents: str | bytes | Iterable[str]) -> str:
    """Returns 16 hex digits that change with the settings or with any of the contents.

    Args:
        settings: Anything that JSON can hold.
        contents: Text, bytes, or a sequence of texts.

    Example:
        >>> fingerprint({"size": 1}, "abc") == fingerprint({"size": 1}, "abc")
        True
        >>> fingerprint({"size": 1}, ["ab", "c"]) == fingerprint({"size": 1}, ["a", "bc"])
        False
    """
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8)
    for content in contents:
        parts = [content] if isinstance(content, (str, bytes)) else content
        for part in parts:
            data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data)
        digest.update(b"\xff" * 8)  # no length: marks the end of one content
    return digest.hexdigest()


def directory_digest(directory: Path) -> str:
    """Returns a hash of the names and contents of a model directory's own files."""
    files = sorted(path for path in directory.iterdir() if path.is_file())
    digests = []
    for path in files:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "blake2b").hexdigest())
    return fingerprint([path.name for path in files], digests)


def cached(key: str, build: Callable[[Path], None]) -> Path:
    """Returns the cached folder of this key, building it first where it is missing.

    The folder appears whole or not at all: it is built under a temporary name and renamed. Where
    two processes build at once, the first to finish wins and both use its folder.

    Args:
        key: The folder's name; put the fingerprint in it.
        build: Writes the contents into the empty folder that it is given.
    """
    target = cache_directory() / key
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=target.parent))
    try:
        build(scratch)
        try:
            scratch.rename(target)
        except OSError:
            if not target.is_dir():  # a failed rename is harmless only if another process won
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target
