"""Fresh weights for layers of a new size, each from its own stream."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import UnknownName
from sparsecraft.core.seeds import generator
from sparsecraft.model.targets import find_targets

Initial = Literal["fan_out", "sparse_fan_in"]


@torch.no_grad()
def draw_weights(
    model: nn.Module,
    names: Sequence[str],
    seed: int,
    *,
    initial: Initial = "fan_out",
    densities: Mapping[str, float] | None = None,
) -> None:
    """Draws these weights anew, Kaiming normal, before any mask; biases beside them are zero.

    Args:
        model: Changed in place.
        names: Of linear layers and convolutions, or patterns; see `find_targets`.
        seed: Each layer draws from its own stream.
        initial: "fan_out" has variance 2 / (outputs * kernel), as in the official code;
            "sparse_fan_in" has 2 / (density * inputs * kernel), so that a masked layer keeps the
            variance of its input.
        densities: Parameter name to density, for "sparse_fan_in"; the others are dense.
    """
    if initial not in get_args(Initial):
        raise UnknownName("initial weights", str(initial), get_args(Initial))
    parameters = dict(model.named_parameters())
    for target in find_targets(model, list(names)):
        view = target.view(parameters[target.parameter])
        outputs, inputs, kernel = view.shape[0], view.shape[1], math.prod(view.shape[2:])
        fan = float(outputs * kernel)
        if initial == "sparse_fan_in":
            fan = (densities or {}).get(target.parameter, 1.0) * inputs * kernel
        view.copy_(normal(view.shape, math.sqrt(2.0 / fan), seed, target.name))
        bias = getattr(model.get_submodule(target.module), "bias", None)
        if isinstance(bias, Tensor):
            bias.zero_()


def normal(shape: Sequence[int], deviation: float, seed: int, name: str) -> Tensor:
    """Returns normal values with mean zero from the stream of this name."""
    return torch.randn(tuple(shape), generator=generator(seed, "initial", name)) * deviation
