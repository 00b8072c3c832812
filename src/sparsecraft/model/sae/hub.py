"""Where a saved autoencoder lies: a path on this machine, or a folder of a hub repository."""

from __future__ import annotations

import re
from pathlib import Path

from sparsecraft.core.errors import CheckpointError, MissingDependency

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(/[\w.=+-]+)*")
_FILES = ("*.json", "*.safetensors", "*.npz", "*.pt")


def local_copy(source: str | Path, subfolder: str = "") -> Path:
    """Returns the directory or file, downloaded first if the source is a hub id.

    Args:
        source: A path, or "org/name", or "org/name/folder".
        subfolder: A folder in it.

    Raises:
        CheckpointError: If there is no such path, and it is no hub id or cannot be downloaded.
    """
    path = Path(source).expanduser()
    if path.exists():
        inside = path / subfolder if subfolder else path
        if not inside.exists():
            raise CheckpointError(f"{path} has no folder {subfolder!r}.{_folders(path)}")
        return inside
    text = str(source)
    if isinstance(source, Path) or not _HUB_ID.fullmatch(text):
        raise CheckpointError(
            f"there is no directory {source}, and it is no hub id, which is org/name or "
            "org/name/folder"
        )
    organisation, name, *rest = text.split("/")
    return _downloaded(f"{organisation}/{name}", "/".join([*rest, *filter(None, [subfolder])]))


def _downloaded(repository: str, folder: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingDependency("huggingface_hub", "hf", "An autoencoder on the hub") from error
    patterns = [f"{folder}/*"] if folder else list(_FILES)
    # Patterns match across folders: only the files at the top are wanted where none is named.
    ignored = [] if folder else ["*/*"]
    try:
        root = snapshot_download(repository, allow_patterns=patterns, ignore_patterns=ignored)
    except Exception as error:
        raise CheckpointError(
            f"{repository} is no directory here, and could not be downloaded from the hub: "
            f"{' '.join(str(error).split())[:300]} Offline (HF_HUB_OFFLINE=1) only what was "
            "downloaded before can be read; give the path of a local copy."
        ) from error
    found = Path(root) / folder
    if not found.is_dir() or not any(found.iterdir()):
        raise CheckpointError(
            f"{repository} has no autoencoder {f'in {folder!r}' if folder else 'at its top'}. Name "
            "its folder: org/name/folder, as the page of the repository lists them."
        )
    return found


def _folders(path: Path) -> str:
    names = sorted(child.name for child in path.iterdir() if child.is_dir())
    if not names:
        return " It has no folders."
    more = f", ... ({len(names)} in all)" if len(names) > 8 else ""
    return f" It has {', '.join(names[:8])}{more}."
