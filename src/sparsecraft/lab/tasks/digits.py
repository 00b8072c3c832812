"""Handwritten digits of 8 by 8 pixels, which scikit-learn carries."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import nn

from sparsecraft.core.errors import MissingDependency
from sparsecraft.lab.tasks.networks import Perceptron, small_vit
from sparsecraft.lab.tasks.training import Fit
from sparsecraft.lab.tasks.vision import DescribedImageTask, Images, Part, stratified


class DigitsTask(DescribedImageTask):
    """Any network on the digits."""

    about = "Handwritten digits of 8x8 pixels from scikit-learn, split by class into three parts."

    def pictures(self) -> dict[Part, Images]:
        """Returns the digits."""
        return digits()


class DigitsMLP(DigitsTask):
    """A perceptron with two hidden layers of 256."""

    name = "digits-mlp"
    architecture = "A 64-256-256-10 perceptron"
    fit = Fit(steps=600, batch_size=64, learning_rate=2e-3)

    def build(self) -> nn.Module:
        """Returns the untrained perceptron."""
        return Perceptron(64, 256, 256, 10)


class DigitsViT(DigitsTask):
    """A vision transformer on patches of 2 by 2 pixels."""

    name = "digits-vit"
    architecture = "A vision transformer of 4 blocks of width 64"
    fit = Fit(steps=800, batch_size=64, learning_rate=1.5e-3)

    def build(self) -> Any:
        """Returns the untrained transformer."""
        return small_vit(pixels=8, patch=2, channels=1, classes=10)


@lru_cache(maxsize=1)
def digits() -> dict[Part, Images]:
    """Returns the digits in three parts: 60, 20 and 20 percent of each class."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingDependency("scikit-learn", "lab", "The digits tasks") from error
    raw = load_digits()
    pixels = torch.from_numpy(raw.images).float().unsqueeze(1)
    images = Images((pixels - 4.9) / 6.0, torch.from_numpy(raw.target).long())
    return stratified(images, validation=0.2, test=0.2, seed=0)
