"""The trainings that claims about channels share: a baseline, network slimming, any term on scales.

Networks and data go by a name: "digits" is the small convolutional network on digits, "resnet" a
ResNet on patches of photographs.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from sparsecraft.core.kinds import InTraining
from sparsecraft.core.mask import Mask
from sparsecraft.core.scale_gradients import Penalty
from sparsecraft.lab.claims import digits
from sparsecraft.lab.timing import interleaved_latency
from sparsecraft.methods.weights.network_slimming import NetworkSlimming
from sparsecraft.model.channels import batch_norms, from_scratch
from sparsecraft.model.flops import count_flops
from sparsecraft.model.sparsifier import Sparsifier

RATE = 0.1
WIDTHS = (12, 24)
PATCH_BATCH = 128
TIMED = 256
"""Images in a batch whose time is taken."""


@dataclass(frozen=True)
class Phases:
    """Epochs of the three trainings."""

    baseline: int = 15
    sparse: int = 20
    fine: int = 10


class Logits(nn.Module):
    """Shows a Hugging Face classifier as a function from pictures to logits."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Returns (examples, classes)."""
        return self.network(pixel_values=pixel_values).logits


def data_of(network: str, seed: int) -> digits.Digits:
    """Returns the three parts; those of the patches are the same for every seed."""
    if network == "digits":
        return digits.load_digits(seed)
    from sparsecraft.lab.tasks.patches import PARTS, patches

    images = patches()
    return digits.Digits(*(digits.Part(images[p].pixels, images[p].labels) for p in PARTS))


def untrained(network: str, seed: int) -> nn.Module:
    """Returns the network as it begins."""
    if network == "digits":
        return digits.convolutional(*WIDTHS, seed)
    from sparsecraft.lab.tasks.networks import small_resnet
    from sparsecraft.lab.tasks.patches import patches

    classes = int(patches()["training"].labels.max()) + 1
    return from_scratch(Logits(small_resnet(channels=1, classes=classes)), seed)


@lru_cache(maxsize=2)
def baseline(network: str, seed: int, epochs: int) -> nn.Module:
    """Returns the trained network that all arms of a seed begin with; not to be changed."""
    return train(untrained(network, seed), network, seed, epochs)


@lru_cache(maxsize=8)
def slimmed(
    network: str, seed: int, epochs: tuple[int, int], strength: float, penalty: Penalty
) -> nn.Module:
    """Returns the baseline after network slimming, its scales as trained; not to be changed.

    Args:
        network: "digits" or "resnet".
        seed: Of data, network and order.
        epochs: Of the baseline and of slimming.
        strength: Lambda.
        penalty: See `scale_gradient`.
    """
    model = copy.deepcopy(baseline(network, seed, epochs[0]))
    method = NetworkSlimming(strength=strength, penalty=penalty)
    return train(model, network, seed, epochs[1], method)


def train(
    model: nn.Module, network: str, seed: int, epochs: int, method: InTraining | None = None
) -> nn.Module:
    """Trains in place, under the method where one is given, and returns the same network.

    The method's outcome is not written: all scales stay as they were trained.
    """
    part = data_of(network, seed).train
    batch = digits.BATCH if network == "digits" else PATCH_BATCH
    sparsifier = None
    if method is not None:
        total = digits.steps(part, epochs, batch)
        sparsifier = Sparsifier(model, method, total_steps=total, seed=seed)
    digits.train(
        model, part, seed=seed, rate=RATE, epochs=epochs, batch=batch, sparsifier=sparsifier
    )
    if sparsifier is not None:
        sparsifier.detach()
    return model


def scale_figures(model: nn.Module, mask: Mask) -> dict[str, float]:
    """Returns the mean magnitude of the scales that stay and the largest of those that go."""
    norms = batch_norms(model)
    scales = {name: norms[name].weight.detach().abs() for name in mask}
    kept = torch.cat([scales[name][keep] for name, keep in mask.items()])
    gone = torch.cat([scales[name][~keep] for name, keep in mask.items()])
    return {"kept scale": float(kept.mean()), "largest removed scale": float(gone.max())}


def cost_figures(model: nn.Module, removed: nn.Module, example: Tensor) -> dict[str, float]:
    """Returns the fractions of FLOPs and of parameters that the smaller network saves."""
    parameters = [sum(p.numel() for p in each.parameters()) for each in (model, removed)]
    flops = [count_flops(each, example) for each in (model, removed)]
    return {
        "FLOPs removed": 1 - flops[1] / flops[0],
        "parameters removed": 1 - parameters[1] / parameters[0],
    }


def latency_figures(dense: nn.Module, removed: nn.Module, data: digits.Digits) -> dict[str, float]:
    """Returns how many times faster the compact network is: median and range of the rounds."""
    batch = {"input": data.test.images[:TIMED]}
    found = interleaved_latency(dense.eval(), removed.eval(), {TIMED: batch})[TIMED]
    return {
        "times faster": found.ratio,
        "times faster, slowest round": found.ratio_low,
        "times faster, fastest round": found.ratio_high,
        "ms": found.ms,
        "dense ms": found.dense_ms,
    }
