"""The small networks of the image tasks."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from sparsecraft.lab.tasks import pretrained


class Perceptron(nn.Module):
    """Fully connected layers with ReLU between them, on flattened pictures.

    Args:
        sizes: Inputs, hidden sizes, classes.

    Example:
        >>> import torch
        >>> Perceptron(64, 32, 10)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Returns (examples, classes) logits of (examples, channels, height, width) pictures."""
        return self.layers(pixel_values)


def small_vit(pixels: int, patch: int, channels: int, classes: int) -> Any:
    """Returns an untrained Hugging Face vision transformer of four blocks of width 64."""
    transformers = pretrained.transformers_library("A vision transformer")
    config = transformers.ViTConfig(
        image_size=pixels,
        patch_size=patch,
        num_channels=channels,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_labels=classes,
    )
    return transformers.ViTForImageClassification(config)


def small_resnet(channels: int, classes: int) -> Any:
    """Returns an untrained Hugging Face ResNet with three stages of two basic blocks."""
    transformers = pretrained.transformers_library("A ResNet")
    config = transformers.ResNetConfig(
        num_channels=channels,
        embedding_size=32,
        hidden_sizes=[32, 64, 128],
        depths=[2, 2, 2],
        layer_type="basic",
        num_labels=classes,
    )
    return transformers.ResNetForImageClassification(config)
