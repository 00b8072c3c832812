"""Handwritten digits and a small convolutional network: the scale at which many claims are tried.

The 1797 images of scikit-learn are divided once into 800 for training and validation and 997 for
the test; each seed divides the 800 anew into 500 and 300. Nothing is ever chosen on the test part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecraft.core.errors import MissingDependency
from sparsecraft.core.mask import Mask
from sparsecraft.core.seeds import generator
from sparsecraft.model.frozen import hold_mask
from sparsecraft.model.sparsifier import Sparsifier

TRAINING, VALIDATION = 500, 300
CLASSES = 10


@dataclass(frozen=True)
class Part:
    """Images (n, 1, 8, 8) in [0, 1] and their labels (n,)."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Digits:
    """The three parts, disjoint."""

    train: Part
    validation: Part
    test: Part


def load_digits(seed: int) -> Digits:
    """Returns the images, with the division into training and validation of this seed.

    Raises:
        MissingDependency: If scikit-learn is not installed.
    """
    images, labels = _all_digits()
    fixed = torch.randperm(len(labels), generator=generator(0, "digits", "test"))
    held_in, test = fixed[: TRAINING + VALIDATION], fixed[TRAINING + VALIDATION :]
    order = held_in[torch.randperm(len(held_in), generator=generator(seed, "digits", "division"))]
    chosen = (order[:TRAINING], order[TRAINING:], test)
    return Digits(*(Part(images[index], labels[index]) for index in chosen))


def convolutional(first: int, second: int, seed: int, blocks: int = 1) -> nn.Sequential:
    """Returns a network of 3x3 convolutions with batch normalisation, and a linear classifier.

    The layers have `first`, `second` and `second` channels, the second with stride 2. Weights are
    Kaiming normal, each layer from its own stream, so that nets of one shape start alike.

    Args:
        first: Channels of the first stage.
        second: Channels of the second stage.
        seed: Seed of the initial weights.
        blocks: Convolutions of the first stage; the second has one more.
    """
    stages = [(first, 1)] * blocks + [(second, 2)] + [(second, 1)] * blocks
    layers: list[nn.Module] = []
    width = 1
    for channels, stride in stages:
        layers += [
            nn.Conv2d(width, channels, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        ]
        width = channels
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES))
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter, generator=generator(seed, "initial", name))
    nn.init.zeros_(model[-1].bias)  # type: ignore[arg-type]
    return model


BATCH = 50


def steps(data: Part, epochs: int, batch: int = BATCH) -> int:
    """Returns how many optimiser steps `train` takes."""
    return epochs * math.ceil(len(data.labels) / batch)


def train(
    model: nn.Module,
    data: Part,
    mask: Mask | None = None,
    *,
    seed: int,
    rate: float,
    epochs: int,
    batch: int = BATCH,
    weight_decay: float = 5e-4,
    constant: bool = False,
    sparsifier: Sparsifier | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Trains in place by momentum SGD with a cosine schedule; pruned weights stay zero.

    Args:
        model: The network.
        data: What to train on.
        mask: What to hold at zero, or None for a dense network.
        seed: Seed of the order of the examples, the same for every arm.
        rate: Learning rate at the start.
        epochs: Passes over the data.
        batch: Images in a step.
        weight_decay: Of SGD.
        constant: Whether the learning rate stays as it is instead of falling to zero.
        sparsifier: Makes the network sparse while it trains, for `steps` steps; it is attached
            here and left to the caller to finalize.
        optimizer: Used in place of SGD, with the same schedule.
    """
    if optimizer is None:
        optimizer = torch.optim.SGD(
            model.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=weight_decay
        )
    total = steps(data, epochs, batch)
    decay = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 1.0 if constant else (1 + math.cos(math.pi * step / total)) / 2
    )
    if mask is not None:
        hold_mask(model, mask, optimizer)
    if sparsifier is not None:
        sparsifier.attach(optimizer)
    order = generator(seed, "order")
    model.train()
    for _ in range(epochs):
        for index in torch.randperm(len(data.labels), generator=order).split(batch):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(data.images[index]), data.labels[index])
            (loss if sparsifier is None else loss + sparsifier.loss()).backward()
            optimizer.step()
            decay.step()


@torch.no_grad()
def accuracy(model: nn.Module, data: Part) -> float:
    """Returns the fraction of images whose digit the model names."""
    model.eval()
    return int((model(data.images).argmax(1) == data.labels).sum()) / len(data.labels)


def prunable(model: nn.Module) -> int:
    """Returns the number of weights of the convolutions and of the classifier."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.dim() > 1)


def equal_widths(first: int, second: int, density: float) -> tuple[int, int]:
    """Returns the widths of the small dense network with as many weights as the sparse one keeps.

    Of the widths whose count is within 2 % of it, those whose proportion is nearest to the large
    network's are taken; if there are none, those with the nearest count.

    Args:
        first: Channels of the large network's first stage.
        second: Channels of its second stage.
        density: Fraction of weights that the sparse network keeps.
    """
    target = density * _weights(first, second)

    def badness(widths: tuple[int, int]) -> tuple[float, float, float]:
        residual = abs(_weights(*widths) / target - 1)
        return max(residual, 0.02), abs(widths[1] / widths[0] - second / first), residual

    return min(((a, b) for a in range(1, first + 1) for b in range(1, second + 1)), key=badness)


def _weights(first: int, second: int) -> int:
    return 9 * first + 9 * first * second + 9 * second * second + CLASSES * second


@cache
def _all_digits() -> tuple[Tensor, Tensor]:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise MissingDependency("scikit-learn", "lab", "The digits data") from error
    found = datasets.load_digits()
    images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 16
    return images, torch.tensor(found.target, dtype=torch.int64)
