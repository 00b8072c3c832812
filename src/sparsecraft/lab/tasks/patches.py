"""Which of scikit-image's pictures does a patch of 32 by 32 pixels come from?"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparsecraft.core.errors import InvalidValue, MissingDependency
from sparsecraft.core.seeds import derive
from sparsecraft.lab.tasks.networks import small_resnet
from sparsecraft.lab.tasks.training import Fit
from sparsecraft.lab.tasks.vision import PARTS, DescribedImageTask, Images, Part

PICTURES = [
    "astronaut.png",
    "brick.png",
    "camera.png",
    "cell.png",
    "chelsea.png",
    "clock_motion.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "page.png",
    "retina.jpg",
    "rocket.jpg",
    "text.png",
]
"""Photographs and scans that are in the wheel itself; drawings and near copies are left out."""
FEWEST = 8
PATCH = 32
TILE = 48
PER_PICTURE: dict[Part, int] = {"training": 800, "validation": 40, "test": 80}
VALIDATION, TEST = 0.15, 0.25
"""Shares of a picture's tiles; the rest is for training."""
FLAT = 0.02
"""Patches whose grey values spread less than this (of 1) show nothing."""


class PatchesResNet(DescribedImageTask):
    """A ResNet on grey patches; the parts come from separate tiles of a picture."""

    name = "patches-resnet"
    architecture = "A ResNet of 3 stages of 2 basic blocks"
    fit = Fit(steps=600, batch_size=64, learning_rate=2e-3)

    @property
    def about(self) -> str:  # type: ignore[override]
        """One sentence on the data; how many pictures there are depends on scikit-image."""
        pictures = int(patches()["training"].labels.max()) + 1
        return (
            f"Grey 32x32 patches of {pictures} pictures of scikit-image; the class is the picture, "
            f"and each {TILE}x{TILE} tile of a picture serves one part only."
        )

    def pictures(self) -> dict[Part, Images]:
        """Returns the patches."""
        return patches()

    def build(self) -> Any:
        """Returns the untrained ResNet."""
        return small_resnet(channels=1, classes=self.classes)


@lru_cache(maxsize=1)
def patches() -> dict[Part, Images]:
    """Returns patches of every picture that the installed scikit-image carries.

    Raises:
        InvalidValue: If it carries too few.
    """
    folder = _picture_folder()
    found = [name for name in PICTURES if (folder / name).is_file()]
    if len(found) < FEWEST:
        raise InvalidValue(
            f"patches-resnet needs at least {FEWEST} pictures inside scikit-image's data folder; "
            f"this version carries {len(found)}. Install scikit-image>=0.24."
        )
    pixels: dict[Part, list[np.ndarray]] = {part: [] for part in PARTS}
    labels: dict[Part, list[int]] = {part: [] for part in PARTS}
    for label, name in enumerate(found):
        for part, rows in picture_patches(_grey(folder / name), name).items():
            pixels[part] += rows
            labels[part] += [label] * len(rows)
    return {
        part: Images(torch.from_numpy(np.stack(pixels[part])[:, None]), torch.tensor(labels[part]))
        for part in PARTS
    }


def picture_patches(grey: np.ndarray, name: str) -> dict[Part, list[np.ndarray]]:
    """Returns float32 patches of one picture by part, brought to about zero mean, unit spread.

    The picture is cut into tiles without overlap, each tile is given to one part, and patches lie
    inside one tile: no pixel is in two parts.

    Args:
        grey: (height, width) in [0, 1].
        name: Fixes the random choices.
    """
    draw = np.random.default_rng(derive(0, "patches", name))
    height, width = grey.shape
    corners = [
        (y, x)
        for y in range(0, height - TILE + 1, TILE)
        for x in range(0, width - TILE + 1, TILE)
        if grey[y : y + TILE, x : x + TILE].std() >= FLAT
    ]
    shuffled = [corners[index] for index in draw.permutation(len(corners))]
    first = max(1, round(len(corners) * TEST))
    second = first + max(1, round(len(corners) * VALIDATION))
    tiles: dict[Part, list[tuple[int, int]]] = {
        "training": shuffled[second:],
        "validation": shuffled[first:second],
        "test": shuffled[:first],
    }
    return {part: _cut(grey, tiles[part], PER_PICTURE[part], draw) for part in PARTS}


def _cut(
    grey: np.ndarray, tiles: list[tuple[int, int]], count: int, draw: np.random.Generator
) -> list[np.ndarray]:
    rows = []
    for index in range(count):
        y, x = np.array(tiles[index % len(tiles)]) + draw.integers(0, TILE - PATCH + 1, size=2)
        patch = grey[y : y + PATCH, x : x + PATCH]
        if patch.std() >= FLAT:
            rows.append(((patch - 0.5) / 0.25).astype(np.float32))
    return rows


def _picture_folder() -> Path:
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        raise MissingDependency("scikit-image", "lab", "The task patches-resnet")
    return Path(found.origin).parent / "data"


def _grey(path: Path) -> np.ndarray:
    from skimage import color, io, util

    picture = util.img_as_float(io.imread(path))
    return color.rgb2gray(picture[..., :3]) if picture.ndim == 3 else picture
