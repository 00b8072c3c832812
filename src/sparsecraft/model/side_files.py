"""What belongs to a model directory beside weights and config, such as its tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path

_SUFFIXES = (".json", ".txt", ".model", ".jinja")


def copy_side_files(source: Path, folder: Path) -> None:
    """Copies what is not there yet; files about the weights themselves are left out.

    Args:
        source: A model directory.
        folder: Where the copies go.
    """
    # One level down lie the modules of sentence-transformers ("1_Pooling/config.json").
    for path in [*source.glob("*"), *source.glob("[0-9]*_*/*")]:
        target = folder / path.relative_to(source)
        wanted = path.suffix in _SUFFIXES and not path.name.endswith(".index.json")
        if wanted and path.is_file() and not target.exists():
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
