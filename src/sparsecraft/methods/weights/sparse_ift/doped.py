"""Sparse-Doped: y = W x + V U x, a sparse W and a dense low-rank term that its zeros pay for.

Only W is made sparse; U and V stay dense, as the paper says. The official code's general rule
would mask them too, and the cost would then fall below that of the dense layer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.methods.weights.sparse_ift.factorized import factors
from sparsecraft.methods.weights.sparse_ift.scope import Scope, check_exchangeable


class DopedLayer(nn.Module):
    """W x + V U x in place of a linear layer or a convolution.

    Args:
        layer: Becomes W, with its bias.
        rank: Rank of V U; with 0 there is only W.

    Example:
        >>> import torch
        >>> layer = DopedLayer(nn.Linear(6, 4), rank=2)
        >>> x = torch.ones(1, 6)
        >>> torch.allclose(layer(x), layer.W(x) + layer.V(layer.U(x)))
        True
    """

    def __init__(self, layer: nn.Module, rank: int) -> None:
        super().__init__()
        if rank < 0:
            raise InvalidValue(f"rank={rank} is not allowed: give at least 0")
        self.W = copy.deepcopy(layer)
        self.rank = rank
        if rank:
            self.U, self.V = factors(layer, rank, bias=False)
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """Returns W x + V U x, without an activation inside."""
        return self.W(x) + self.V(self.U(x)) if self.rank else self.W(x)


def dope(model: nn.Module, scope: Scope, rank: Callable[[str, Any], int]) -> dict[str, nn.Module]:
    """Exchanges the layers of the scope in place, and returns the new ones by name.

    Args:
        model: Changed in place.
        scope: What to exchange.
        rank: Gives the rank from a layer's name and the layer.
    """
    check_exchangeable(model, scope)
    made: dict[str, nn.Module] = {}
    for name in scope.modules:
        layer = model.get_submodule(name)
        made[name] = DopedLayer(layer, rank(name, layer))
        model.set_submodule(name, made[name])
    return made
