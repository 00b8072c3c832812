"""Steering: a direction is added to a model's activations while it runs, or taken out of them.

A latent's direction is its decoder row; with a signed code a negative alpha gives the other pole.
The same block takes a direction from `DifferenceInMeans`, so that both are compared alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.domains.interpretability.directions import DifferenceInMeans
from sparsecraft.domains.interpretability.latent_amplitudes import directions
from sparsecraft.model.hook_points import hook_point
from sparsecraft.model.sae import SparseAutoencoder


def latent_direction(sae: SparseAutoencoder, latent: int) -> Tensor:
    """Returns (d,), the decoder row of a latent.

    Raises:
        InvalidValue: If there is no such latent.
    """
    if not 0 <= latent < sae.d_sae:
        raise InvalidValue(f"latent={latent} is not allowed: there are 0 to {sae.d_sae - 1}")
    return directions(sae)[latent]


@contextmanager
def steering(
    model: nn.Module,
    at: str,
    direction: Tensor | DifferenceInMeans,
    alpha: float = 1.0,
    *,
    mask: Tensor | None = None,
) -> Iterator[nn.Module]:
    """Gives the model; inside the block alpha * direction is added to its activations.

    Args:
        model: Any module.
        at: Hook point.
        direction: (d,), such as `latent_direction(sae, 5)`, or a fitted `DifferenceInMeans`.
        alpha: How much is added; negative for the other pole.
        mask: bool, like the activations without their last dimension: where to steer; by default
            everywhere.

    Raises:
        UnknownName: If there is no such hook point.
        InvalidValue: If widths differ.
    """
    vector = _vector(direction)
    with _edited(model, at, vector, mask, lambda rows: rows + alpha * vector.to(rows)):
        yield model


@contextmanager
def ablating(
    model: nn.Module,
    at: str,
    direction: Tensor | DifferenceInMeans,
    *,
    mask: Tensor | None = None,
) -> Iterator[nn.Module]:
    """Gives the model; inside the block its activations have nothing along the direction.

    Args:
        model: Any module.
        at: Hook point.
        direction: (d,), or a fitted `DifferenceInMeans`.
        mask: Where; by default everywhere.

    Raises:
        UnknownName: If there is no such hook point.
        InvalidValue: If widths differ, or the direction is zero.
    """
    vector = _vector(direction)
    if not bool(vector.any()):
        raise InvalidValue("the direction is zero, so nothing lies along it")
    unit = vector / vector.norm()

    def without(rows: Tensor) -> Tensor:
        along = unit.to(rows)
        return rows - (rows @ along)[..., None] * along

    with _edited(model, at, vector, mask, without):
        yield model


def _vector(direction: Tensor | DifferenceInMeans) -> Tensor:
    vector = direction.direction if isinstance(direction, DifferenceInMeans) else direction
    if vector.dim() != 1 or not vector.numel():
        raise InvalidValue(f"a direction of shape {tuple(vector.shape)} was given: (d,) is needed")
    return vector.detach()


@contextmanager
def _edited(
    model: nn.Module,
    at: str,
    vector: Tensor,
    mask: Tensor | None,
    change: Callable[[Tensor], Tensor],
) -> Iterator[None]:
    def edit(hidden: Tensor) -> Tensor:
        if hidden.shape[-1] != len(vector):
            raise InvalidValue(
                f"{at} has {hidden.shape[-1]} entries, the direction {len(vector)}: it belongs to "
                "another place"
            )
        changed = change(hidden)
        if mask is None:
            return changed
        return torch.where(mask.to(hidden.device)[..., None], changed, hidden)

    handle = hook_point(model, at).replace(edit)
    try:
        yield
    finally:
        handle.remove()
