"""Whitened patches of scikit-image's photographs and textures, for claims on codes of images.

Of the pictures that come in the wheel, one is held out for validation and one for the test; which
ones they are goes round with the seed. Each is cut to its central square, so that the whitening's
filter is round, and brought to the variance 0.1 by itself: whitened textures have ten times the
variance of whitened photographs, and a common factor, as for the paper's landscapes, would leave
photographs with hardly any code.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue, MissingDependency
from sparsecraft.core.seeds import derive
from sparsecraft.methods.codes.sparse_coding.preprocessing import Whitening, patches, standardise

PICTURES = (
    "camera.png",
    "astronaut.png",
    "coins.png",
    "coffee.png",
    "brick.png",
    "rocket.jpg",
    "grass.png",
    "gravel.png",
    "chelsea.png",
    "moon.png",
)
"""Tests are on every second one, validations on those between."""


@dataclass(frozen=True)
class NaturalPatches:
    """Patches (rows, size * size) of disjoint sets of pictures, each without its mean.

    Args:
        train: From all pictures but two.
        validation: From one of the two.
        test: From the other.
    """

    train: Tensor
    validation: Tensor
    test: Tensor


def natural_patches(
    seed: int, *, size: int = 8, rows: int = 50_000, held_out: int = 4_000
) -> NaturalPatches:
    """Returns the patches of a seed, float32.

    Args:
        seed: Of the pictures held out and of the places of the patches.
        size: Pixels of a side.
        rows: Patches to train on.
        held_out: Patches to validate on, and as many to test on.

    Raises:
        MissingDependency: If scikit-image is not installed.
    """
    pictures = _pictures()
    first = (2 * seed) % len(pictures)
    test, validation = pictures[first], pictures[(first + 1) % len(pictures)]
    train = [each for each in pictures if each is not test and each is not validation]

    def cut(chosen: list[Tensor], count: int, part: str) -> Tensor:
        return patches(chosen, size, count, seed=derive(seed, "natural patches", part))

    return NaturalPatches(
        train=cut(train, rows, "train"),
        validation=cut([validation], held_out, "validation"),
        test=cut([test], held_out, "test"),
    )


@cache
def _pictures() -> list[Tensor]:
    """Returns the whitened squares, float32."""
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        raise MissingDependency("scikit-image", "lab", "Natural images")
    from skimage import color, io, util

    folder = Path(found.origin).parent / "data"
    missing = [name for name in PICTURES if not (folder / name).is_file()]
    if missing:
        raise InvalidValue(
            f"this version of scikit-image carries no {missing[0]}: install scikit-image>=0.24"
        )
    squares = []
    for name in PICTURES:
        picture = util.img_as_float32(io.imread(folder / name))
        grey = color.rgb2gray(picture[..., :3]) if picture.ndim == 3 else picture
        square = standardise(_square(torch.from_numpy(grey).float()))
        squares.append(Whitening().fit([square])(square))
    return squares


def _square(image: Tensor) -> Tensor:
    """Returns the largest central square."""
    height, width = image.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]
