"""Penalties on attention maps, and figures that tell what they did to them.

All maps are (batch, heads, queries, keys), as they come out of the softmax: each row of keys sums
to 1. A penalty's name says how it is computed; whether it makes attention sparse is another matter.
The sum of log(1 + a^2) over a row is convex and smallest where attention is uniform, so `log1p_sq`,
the penalty of paper 25, flattens attention. `negative_log1p_sq`, `hoyer` and `entropy` are smallest
where a row looks at a single key, and do sparsify. `l1` is constant on maps and is meant for
logits, activations and weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue, UnknownName

Layers = Literal["last", "all"] | tuple[int, ...]
Reduce = Literal["mean", "sum"]


def log1p_sq(x: Tensor) -> Tensor:
    """Returns log(1 + x^2) of every entry.

    Reference:
        Prasetyo et al., 2023, arXiv 2307.11988; its code takes the mean over all entries.
    """
    return torch.log1p(x.square())


def negative_log1p_sq(x: Tensor) -> Tensor:
    """Returns -log(1 + x^2) of every entry: the official penalty with the sign that sparsifies."""
    return -log1p_sq(x)


def l1(x: Tensor) -> Tensor:
    """Returns |x| of every entry; its sum over a row of an attention map is always 1."""
    return x.abs()


def hoyer(x: Tensor) -> Tensor:
    """Returns the l1 over the l2 norm of every row: 1 for one entry, sqrt(n) for n equal ones.

    A row of zeros has 0.

    Reference:
        Hoyer, 2004, Journal of Machine Learning Research 5, equation 4, up to scale and sign.
    """
    smallest = torch.finfo(x.dtype).tiny
    return x.abs().sum(-1) / torch.linalg.vector_norm(x, dim=-1).clamp_min(smallest)


def entropy(x: Tensor) -> Tensor:
    """Returns -sum(x log x) of every row, in nats: 0 for one key, log(n) for n equal ones."""
    # The clamp keeps the slope at an entry of exact zero finite; softmax multiplies it by zero.
    return -(x * x.clamp_min(torch.finfo(x.dtype).tiny).log()).sum(-1)


PENALTIES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "log1p_sq": log1p_sq,
    "negative_log1p_sq": negative_log1p_sq,
    "l1": l1,
    "hoyer": hoyer,
    "entropy": entropy,
}


def attention_penalty(
    maps: Sequence[Tensor],
    penalty: str = "log1p_sq",
    *,
    layers: Layers = "last",
    reduce: Reduce = "mean",
) -> Tensor:
    """Returns the penalty of some layers' maps as a scalar, differentiable in them.

    Args:
        maps: One tensor for each layer, first layer first.
        penalty: A name in `PENALTIES`.
        layers: "last", "all", or the numbers of the layers, negative ones counted from the end.
        reduce: "mean" over all that the penalty gives for a layer (entries, or rows for `hoyer`
            and `entropy`), then over the layers; or "sum" over both.

    Raises:
        UnknownName: For another penalty.
        InvalidValue: For layers that are not there, or another reduction.

    Example:
        >>> uniform = torch.full((1, 1, 2, 2), 0.5)
        >>> round(float(attention_penalty([uniform])), 4)
        0.2231
    """
    check_penalty(penalty)
    check_reduce(reduce)
    values = [PENALTIES[penalty](each) for each in choose_layers(maps, layers)]
    if reduce == "sum":
        return torch.stack([value.sum() for value in values]).sum()
    return torch.stack([value.mean() for value in values]).mean()


def choose_layers(maps: Sequence[Tensor], layers: Layers) -> list[Tensor]:
    """Returns the maps of the layers asked for.

    Raises:
        InvalidValue: If one of them is not there.
    """
    check_layers(layers)
    if not maps:
        raise InvalidValue("there is no attention map; the model must run before its penalty")
    if layers == "all":
        return list(maps)
    wanted = (-1,) if layers == "last" else tuple(int(number) for number in layers)
    absent = [number for number in wanted if not -len(maps) <= number < len(maps)]
    if absent:
        raise InvalidValue(
            f"layers={layers!r}: there is no layer {absent[0]}; there are {len(maps)}, "
            f"0 to {len(maps) - 1}"
        )
    return [maps[number] for number in wanted]


def log1p_sq_bounds(keys: int) -> tuple[float, float]:
    """Returns the least and the greatest mean of log(1 + a^2) over a row of an attention map.

    The least belongs to uniform attention, the greatest to a row that looks at one key.

    Args:
        keys: Length n of the row.

    Example:
        >>> [round(bound, 4) for bound in log1p_sq_bounds(2)]
        [0.2231, 0.3466]
    """
    return math.log1p(1 / keys**2), math.log(2) / keys


@dataclass(frozen=True)
class AttentionStatistics:
    """What one layer's attention looks like, averaged over images, heads and queries.

    Args:
        entropy: Of a row, in nats.
        uniform_entropy: What uniform attention over as many keys has: log(keys).
        peakiness: The largest entry of a row.
        log1p_sq: The official penalty of the layer.
    """

    entropy: float
    uniform_entropy: float
    peakiness: float
    log1p_sq: float


@torch.no_grad()
def attention_statistics(attention: Tensor) -> AttentionStatistics:
    """Returns the figures of one layer's maps.

    Args:
        attention: (batch, heads, queries, keys), rows summing to 1.

    Example:
        >>> attention_statistics(torch.eye(4)[None, None]).peakiness
        1.0
    """
    attention = attention.double()
    return AttentionStatistics(
        entropy=float(entropy(attention).mean()),
        uniform_entropy=math.log(attention.shape[-1]),
        peakiness=float(attention.amax(-1).mean()),
        log1p_sq=float(log1p_sq(attention).mean()),
    )


def check_penalty(penalty: str) -> None:
    """Raises UnknownName unless there is such a penalty."""
    if penalty not in PENALTIES:
        raise UnknownName("attention penalty", penalty, PENALTIES)


def check_reduce(reduce: str) -> None:
    """Raises InvalidValue unless this is a reduction."""
    if reduce not in ("mean", "sum"):
        raise InvalidValue(f'reduce={reduce!r} is not allowed: give "mean" or "sum"')


def check_layers(layers: object) -> None:
    """Raises InvalidValue unless this can name layers."""
    numbers = isinstance(layers, tuple | list) and all(isinstance(n, int) for n in layers)
    if layers not in ("last", "all") and not (numbers and layers):
        raise InvalidValue(
            f'layers={layers!r} is not allowed: give "last", "all" or numbers such as (0, -1)'
        )
