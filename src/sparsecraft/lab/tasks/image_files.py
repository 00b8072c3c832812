"""Fashion-MNIST and CIFAR-10 from files in SPARSECRAFT_DATA."""

from __future__ import annotations

import gzip
import io
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sparsecraft.core.errors import CheckpointError, MissingDependency
from sparsecraft.lab.tasks import cache
from sparsecraft.lab.tasks.networks import Perceptron, small_resnet
from sparsecraft.lab.tasks.training import Fit
from sparsecraft.lab.tasks.vision import DescribedImageTask, Images, Part

RESNET = "A ResNet of 3 stages of 2 basic blocks"


class FashionTask(DescribedImageTask):
    """Any network on Fashion-MNIST."""

    about = (
        "Fashion-MNIST, clothes of 28x28 grey pixels; validation is the end of its training half."
    )

    def pictures(self) -> dict[Part, Images]:
        """Returns the clothes."""
        return fashion_mnist(cache.data_directory("fashion_mnist", "Fashion-MNIST"))


class FashionMLP(FashionTask):
    """A perceptron with hidden layers of 300 and 100 on Fashion-MNIST."""

    name = "fashion-mnist-mlp"
    architecture = "A 784-300-100-10 perceptron"
    fit = Fit(steps=2000, batch_size=128, learning_rate=1e-3)

    def build(self) -> nn.Module:
        """Returns the untrained perceptron."""
        return Perceptron(784, 300, 100, 10)


class FashionResNet(FashionTask):
    """A small ResNet on Fashion-MNIST."""

    name = "fashion-mnist-resnet"
    architecture = RESNET
    fit = Fit(steps=800, batch_size=64, learning_rate=2e-3)

    def build(self) -> Any:
        """Returns the untrained ResNet."""
        return small_resnet(channels=1, classes=10)


class Cifar10ResNet(DescribedImageTask):
    """A small ResNet on a sample of CIFAR-10."""

    name = "cifar10-resnet"
    about = (
        "A JPEG-compressed sample of CIFAR-10, so not comparable with published figures; "
        "validation is the end of its training half."
    )
    architecture = RESNET
    fit = Fit(steps=1200, batch_size=64, learning_rate=2e-3)

    def pictures(self) -> dict[Part, Images]:
        """Returns the sample."""
        return cifar10(cache.data_directory("cifar10_jpg", "The task cifar10-resnet"))

    def build(self) -> Any:
        """Returns the untrained ResNet."""
        return small_resnet(channels=3, classes=10)


@lru_cache(maxsize=1)
def fashion_mnist(folder: Path) -> dict[Part, Images]:
    """Returns the training files, their last sixth as validation, and the test files."""
    both = {}
    for half, stem in (("train", "train"), ("test", "t10k")):
        pixels = read_idx(folder / f"{stem}-images-idx3-ubyte.gz")
        labels = read_idx(folder / f"{stem}-labels-idx1-ubyte.gz")
        both[half] = _images(pixels[:, None], labels, mean=0.286, spread=0.353)
    return _parts(both["train"], both["test"])


@lru_cache(maxsize=1)
def cifar10(folder: Path) -> dict[Part, Images]:
    """Returns the training file, its last sixth as validation, and the test file."""
    train, test = (_read_jpegs(folder / f"{half}.npz") for half in ("train", "test"))
    return _parts(train, test)


def read_idx(path: Path) -> np.ndarray:
    """Returns the uint8 array of a gzipped IDX file.

    Raises:
        CheckpointError: If the file is missing or damaged.
    """
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise CheckpointError(f"could not read {path}: {error}") from error
    if len(data) < 4 or data[2] != 8:
        raise CheckpointError(f"{path} is not an IDX file of bytes.")
    dimensions = data[3]
    shape = np.frombuffer(data, ">i4", dimensions, 4)
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions)
    if values.size != int(np.prod(shape)):
        raise CheckpointError(f"{path} holds {values.size} bytes, not those of {tuple(shape)}.")
    return values.reshape(shape)


def _read_jpegs(path: Path) -> Images:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependency("pillow", "lab", "The task cifar10-resnet") from error
    with np.load(path) as stored:
        jpeg, offsets, labels = (stored[name] for name in ("jpeg", "offsets", "labels"))
    pixels = [
        np.asarray(Image.open(io.BytesIO(jpeg[start:end].tobytes())).convert("RGB"))
        for start, end in pairwise(offsets.tolist())
    ]
    return _images(np.stack(pixels).transpose(0, 3, 1, 2), labels, mean=0.473, spread=0.251)


def _images(pixels: np.ndarray, labels: np.ndarray, mean: float, spread: float) -> Images:
    scaled = (pixels.astype(np.float32) / 255 - mean) / spread
    return Images(torch.from_numpy(scaled), torch.from_numpy(labels.astype(np.int64)))


def _parts(train: Images, test: Images) -> dict[Part, Images]:
    cut = len(train) * 5 // 6
    first, last = torch.arange(len(train)).tensor_split([cut])
    return {"training": train.take(first), "validation": train.take(last), "test": test}
