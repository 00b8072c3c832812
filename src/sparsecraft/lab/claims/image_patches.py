"""Whitened patches of scikit-learn's two photographs, for claims on dictionaries.

Each photograph is cut from left to right into a part for training, one for validation and one for
the test, so that no pixel is in two parts; the whitening is fitted on the first.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
from torch import Tensor

from sparsecraft.core.errors import MissingDependency
from sparsecraft.core.seeds import derive
from sparsecraft.methods.codes.sparse_coding.preprocessing import Whitening, patches, standardise

Part = Literal["training", "validation", "test"]
EDGES: dict[Part, tuple[float, float]] = {
    "training": (0.0, 0.6),
    "validation": (0.6, 0.75),
    "test": (0.75, 1.0),
}


def whitened_patches(part: Part, count: int, seed: int, size: int = 8) -> Tensor:
    """Returns (count, size * size) patches from random places of a part, each without its mean.

    Args:
        part: "training", "validation" or "test".
        count: Of patches.
        seed: Of the places.
        size: Pixels of a side.

    Raises:
        MissingDependency: If scikit-learn is not installed.
    """
    return patches(_whitened()[part], size, count, seed=derive(seed, "image patches", part))


@cache
def _whitened() -> dict[Part, list[Tensor]]:
    parts: dict[Part, list[Tensor]] = {
        part: [_cut(image, *edges) for image in _photographs()] for part, edges in EDGES.items()
    }
    whitening = Whitening().fit(parts["training"])
    return {part: [whitening(image) for image in images] for part, images in parts.items()}


def _cut(image: Tensor, begin: float, end: float) -> Tensor:
    width = image.shape[1]
    return image[:, round(begin * width) : round(end * width)]


def _photographs() -> list[Tensor]:
    """Returns the grey photographs, each (height, width)."""
    try:
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise MissingDependency("scikit-learn", "lab", "The patches of photographs") from error
    return [
        standardise(torch.tensor(image, dtype=torch.float32).mean(2))
        for image in load_sample_images().images
    ]
