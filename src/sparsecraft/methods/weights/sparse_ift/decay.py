"""Weight decay of the product V U in place of that of its factors.

Decay of U and V by themselves prefers factors of equal size, whatever they compute together;
wd/2 ||V U||^2 is what the dense layer's decay would be. It is defined where nothing stands between
U and V: doped layers, and factorised ones with a linear middle.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.methods.weights.sparse_ift.doped import DopedLayer
from sparsecraft.methods.weights.sparse_ift.factorized import FactorizedLayer


def joint_weight_decay(model: nn.Module, weight_decay: float) -> Tensor:
    """Returns the sum over layers of wd/2 ||V U||^2 (Frobenius), to be added to the loss.

    Args:
        model: What `sparse_ift` returned; masked entries of the factors are zero already.
        weight_decay: The dense model's. Give the optimiser `joint_decay_groups`, which spare the
            factors.

    Raises:
        InvalidValue: If no layer has such a product.

    Example:
        >>> layer = DopedLayer(nn.Linear(2, 2), rank=1)
        >>> _ = nn.init.ones_(layer.U.weight), nn.init.ones_(layer.V.weight)
        >>> joint_weight_decay(layer, 0.5)  # V U is a 2 by 2 matrix of ones
        tensor(1., grad_fn=<MulBackward0>)
    """
    norms = []
    for layer in _products(model):
        first, second = layer.U.weight.flatten(1), layer.V.weight.flatten(1)
        # ||V U||^2 = <V'V, U U'>: rank by rank, so that V U is never formed.
        norms.append(((second.mT @ second) * (first @ first.mT)).sum())
    return torch.stack(norms).sum() * (weight_decay / 2)


def joint_decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Returns optimiser groups in which all but the factors of products have weight decay.

    Raises:
        InvalidValue: If no layer has such a product.
    """
    spared = {id(p) for layer in _products(model) for p in (layer.U.weight, layer.V.weight)}
    decayed = [p for p in model.parameters() if id(p) not in spared]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": [p for p in model.parameters() if id(p) in spared], "weight_decay": 0.0},
    ]


def _products(model: nn.Module) -> list[Any]:
    found: list[Any] = [
        each
        for each in model.modules()
        if (isinstance(each, DopedLayer) and each.rank)
        or (isinstance(each, FactorizedLayer) and not len(each.middle))
    ]
    if not found:
        raise InvalidValue(
            "joint weight decay needs a product V U: this model has no doped layer and no "
            "factorised one with middle='linear'. Use the optimiser's weight decay."
        )
    return found
