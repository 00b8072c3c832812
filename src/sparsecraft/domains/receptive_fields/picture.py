"""Pictures of dictionaries: a PNG of all atoms side by side, and a page around it.

Each atom is scaled by its own largest magnitude, so that grey is zero, and the sign can be seen.
The file is written here, with the standard library alone.
"""

from __future__ import annotations

import base64
import html
import math
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue
from sparsecraft.domains.receptive_fields.classes import ReceptiveFields
from sparsecraft.domains.receptive_fields.fields import Shape, as_fields
from sparsecraft.model.files import write_atomic

GREY, GAP = 128, 255


def dictionary_picture(
    components: Any,
    shape: Shape | None = None,
    *,
    columns: int | None = None,
    zoom: int = 3,
    order: Tensor | None = None,
) -> bytes:
    """Returns a grey PNG with all atoms, a line of white between them.

    Args:
        components: (n, pixels), NumPy or torch.
        shape: (height, width) of the patches; by default a square.
        columns: Atoms in a row; by default so many that the picture is about square.
        zoom: Pixels of the picture for each of an atom's.
        order: int64, which atoms in which order; by default all as they come.

    Raises:
        InvalidValue: If shapes do not fit, or columns or zoom are below 1.
    """
    atoms, (height, width) = as_fields(components, shape)
    atoms = atoms if order is None else atoms[order]
    count = len(atoms)
    columns = math.ceil(math.sqrt(count * height / width)) if columns is None else columns
    if columns < 1 or zoom < 1 or not count:
        raise InvalidValue(
            f"{count} atoms, columns={columns}, zoom={zoom}: give at least 1 of each"
        )
    largest = atoms.abs().amax(1, keepdim=True).clamp_min(1e-300)
    grey = (GREY + 127 * atoms / largest).round().to(torch.uint8).view(count, height, width)
    grey = grey.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)
    tall, wide = zoom * height + 1, zoom * width + 1
    rows = math.ceil(count / columns)
    canvas = torch.full((rows * tall + 1, columns * wide + 1), GAP, dtype=torch.uint8)
    for index, tile in enumerate(grey):
        top, left = index // columns * tall + 1, index % columns * wide + 1
        canvas[top : top + tall - 1, left : left + wide - 1] = tile
    return _png(canvas)


def write_page(
    path: Path | str,
    components: Any,
    found: ReceptiveFields | None = None,
    *,
    title: str = "A dictionary",
    shape: Shape | None = None,
) -> None:
    """Writes one HTML file with the picture of a dictionary, sorted by class if they are given.

    Args:
        path: The file.
        components: (n, pixels).
        found: What `analyse` found of the same atoms, or None.
        title: Of the page.
        shape: (height, width) of the patches; by default a square.

    Raises:
        InvalidValue: If the shapes do not fit, or `found` is of other atoms.
        CheckpointError: If the file cannot be written.
    """
    atoms, shape = as_fields(components, shape)
    if found is not None and len(found.classes) != len(atoms):
        raise InvalidValue(f"{len(found.classes)} atoms were analysed, but {len(atoms)} are drawn")
    parts = [_figure(atoms, shape, f"All {len(atoms)} atoms")] if found is None else []
    if found is not None:
        parts.append(_table(found.summary()))
        for name, count in found.counts().items():
            index = torch.tensor([i for i, each in enumerate(found.classes) if each == name])
            if count:
                ranked = index[found.gabors.explained[index].argsort(descending=True)]
                caption = f"{name}: {count} of {len(atoms)}, best Gabor fits first"
                parts.append(_figure(atoms, shape, caption, ranked))
    heading = html.escape(title)
    write_atomic(
        Path(path),
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{heading}</title>'
        "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;"
        "padding:0 1rem}img{max-width:100%;image-rendering:pixelated}figure{margin:2rem 0}"
        "td{padding:0 1rem 0 0}td:last-child{text-align:right;font-variant-numeric:tabular-nums}"
        "@media(prefers-color-scheme:dark){body{background:#16181d;color:#e6e6e6}}</style>"
        f"<h1>{heading}</h1>{''.join(parts)}</html>\n",
    )


def _figure(atoms: Tensor, shape: Shape, caption: str, order: Tensor | None = None) -> str:
    columns = max(1, 720 // (3 * shape[1] + 1))
    count = len(atoms) if order is None else len(order)
    png = dictionary_picture(atoms, shape, columns=min(columns, count), order=order)
    words = html.escape(caption)
    data = base64.b64encode(png).decode()
    return (
        f"<figure><figcaption>{words}</figcaption>"
        f'<img alt="{words}" src="data:image/png;base64,{data}"></figure>'
    )


def _table(facts: Mapping[str, float]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{value:.3f}</td></tr>"
        for name, value in facts.items()
    )
    return f"<table>{rows}</table>"


def _png(grey: Tensor) -> bytes:
    """Returns uint8 (height, width) as a PNG of 8 bits of grey."""
    height, width = grey.shape
    # Every line of the picture begins with the number of its filter: none.
    lines = torch.cat([torch.zeros(height, 1, dtype=torch.uint8), grey], 1).numpy().tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
