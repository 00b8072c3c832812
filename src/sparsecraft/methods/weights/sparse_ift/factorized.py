"""Sparse-Factorized: y = V sigma(U x), with an inner width that a sparse U and V pay for.

U takes the layer's kernel, stride and padding, V a kernel of 1 and the bias. The middle is
"nonlinear_relu" (batch normalisation and ReLU, the setting of the paper's results),
"nonlinear_norelu" (batch normalisation) or "linear" (nothing).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.methods.weights.sparse_ift.scope import Scope, check_exchangeable

Middle = Literal["nonlinear_relu", "nonlinear_norelu", "linear"]
MIDDLES: tuple[Middle, ...] = get_args(Middle)
_NORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
}


class FeatureNorm(nn.BatchNorm1d):
    """Batch normalisation of the last axis, over all the axes before it."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns x normalised, (..., features)."""
        return super().forward(x.reshape(-1, x.shape[-1])).view_as(x)


class FactorizedLayer(nn.Module):
    """V sigma(U x) in place of a linear layer or a convolution.

    Args:
        layer: What is replaced; only its sizes, kernel, stride, padding and bias are taken.
        rank: The inner width.
        middle: What stands between U and V.

    Example:
        >>> import torch
        >>> layer = FactorizedLayer(nn.Conv2d(3, 8, 3, stride=2, padding=1), rank=5)
        >>> layer.U.weight.shape, layer.V.weight.shape, layer(torch.zeros(2, 3, 8, 8)).shape
        (torch.Size([5, 3, 3, 3]), torch.Size([8, 5, 1, 1]), torch.Size([2, 8, 4, 4]))
    """

    def __init__(self, layer: nn.Module, rank: int, middle: Middle = "nonlinear_relu") -> None:
        super().__init__()
        if middle not in MIDDLES:
            raise UnknownName("middle", str(middle), MIDDLES)
        self.U, self.V = factors(layer, rank, bias=getattr(layer, "bias", None) is not None)
        norm = _NORMS.get(type(layer), FeatureNorm)
        inner: list[nn.Module] = []
        if middle != "linear":
            inner.append(norm(rank))
        if middle == "nonlinear_relu":
            inner.append(nn.ReLU())
        # The new parts join the layer where it is.
        self.middle = nn.Sequential(*inner).to(self.U.weight)
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """Returns V sigma(U x)."""
        return self.V(self.middle(self.U(x)))


def factors(layer: Any, rank: int, *, bias: bool) -> tuple[Any, Any]:
    """Returns fresh U (inputs to rank, with the layer's kernel) and V (rank to outputs).

    Args:
        layer: torch's Linear or Conv1d to Conv3d.
        rank: The inner width, at least 1.
        bias: Whether V has a bias.
    """
    if rank < 1:
        raise InvalidValue(f"rank={rank} is not allowed: give at least 1")
    at = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    if isinstance(layer, nn.Linear):
        first = nn.Linear(layer.in_features, rank, bias=False, **at)
        return first, nn.Linear(rank, layer.out_features, bias=bias, **at)
    if type(layer) not in _NORMS or layer.groups != 1:
        raise InvalidValue(
            f"{type(layer).__name__} cannot be factorised: give a Linear or an ungrouped Conv1d, "
            "Conv2d or Conv3d"
        )
    shape = {name: getattr(layer, name) for name in ("stride", "padding", "dilation")}
    kind: Any = type(layer)
    mode = layer.padding_mode
    first = kind(
        layer.in_channels, rank, layer.kernel_size, bias=False, padding_mode=mode, **shape, **at
    )
    return first, kind(rank, layer.out_channels, 1, bias=bias, **at)


def sizes(layer: Any) -> tuple[int, int, int]:
    """Returns (inputs, outputs, entries of the kernel) of a linear layer or a convolution."""
    outputs, inputs, *kernel = layer.weight.shape
    return inputs, outputs, math.prod(kernel)


def factorize(
    model: nn.Module, scope: Scope, rank: Callable[[str, Any], int], middle: Middle
) -> dict[str, nn.Module]:
    """Exchanges the layers of the scope in place, and returns the new ones by name.

    Args:
        model: Changed in place.
        scope: What to exchange.
        rank: Gives the inner width from a layer's name and the layer.
        middle: What stands between U and V.
    """
    check_exchangeable(model, scope)
    made: dict[str, nn.Module] = {}
    for name in scope.modules:
        layer = model.get_submodule(name)
        made[name] = FactorizedLayer(layer, rank(name, layer), middle)
        model.set_submodule(name, made[name])
    return made
