"""Sparse-Parallel: 1 / (1 - s) sparse branches of the layer's own size, summed.

Each branch has the batch normalisation that followed the layer, y = sum_j BN_j(W_j x), and the
activation comes after the sum, as in the official code. A layer without normalisation has the
form of the paper's figure, y = sum_j sigma(W_j x). A layer with neither is refused: a sum of
matrices is one matrix, and nothing would be gained.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.methods.weights.sparse_ift.scope import Scope, check_exchangeable
from sparsecraft.model.units import evaluating, run

ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Hardswish, nn.Hardtanh,
)  # fmt: skip
_NORM = nn.modules.batchnorm._BatchNorm


class ParallelLayer(nn.Module):
    """The sum of branches, each a layer and what follows it.

    Args:
        layer: The layer that is repeated, for example a convolution.
        follower: Its batch normalisation or activation, repeated with it.
        branches: How many.
    """

    def __init__(self, layer: nn.Module, follower: nn.Module, branches: int) -> None:
        super().__init__()
        if branches < 1:
            raise InvalidValue(f"branches={branches} is not allowed: give at least 1")
        self.branches = nn.ModuleList(
            nn.Sequential(copy.deepcopy(layer), copy.deepcopy(follower)) for _ in range(branches)
        )
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the sum over the branches."""
        total = self.branches[0](x)
        for branch in self.branches[1:]:
            total = total + branch(x)
        return total


def parallelize(
    model: nn.Module, scope: Scope, branches: int, example_input: Any
) -> dict[str, nn.Module]:
    """Exchanges the layers of the scope and their followers in place; returns them by name.

    Raises:
        InvalidValue: If a layer has neither a batch normalisation nor an activation module right
            behind it.
    """
    check_exchangeable(model, scope)
    followers = _followers(model, scope.modules, example_input)
    lonely = [name for name in scope.modules if name not in followers]
    if lonely:
        raise InvalidValue(
            f"{lonely[:3]}: no batch normalisation and no activation module of its own comes right "
            "after, and a plain sum of branches is a single layer. Add a normalisation, make the "
            "activation a module of its own, or add these names to skip."
        )
    made: dict[str, nn.Module] = {}
    for name in scope.modules:
        follower = model.get_submodule(followers[name])
        made[name] = ParallelLayer(model.get_submodule(name), follower, branches)
        model.set_submodule(name, made[name])
        model.set_submodule(followers[name], nn.Identity())
    return made


def _followers(model: nn.Module, names: Sequence[str], example_input: Any) -> dict[str, str]:
    """Returns, for each layer, the module that takes its output and nothing else."""
    outputs: list[tuple[str, Tensor]] = []  # held, so that an id stays its own
    calls: dict[str, list[str | None]] = {}

    def produced(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            outputs.append((name, output))

        return hook

    def taken(name: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            source = next((made for made, out in outputs if args and out is args[0]), None)
            calls.setdefault(name, []).append(source)

        return hook

    handles = [model.get_submodule(name).register_forward_hook(produced(name)) for name in names]
    for name, module in model.named_modules():
        if isinstance(module, (_NORM, *ACTIVATIONS)):
            handles.append(module.register_forward_pre_hook(taken(name)))
    try:
        with torch.no_grad(), evaluating(model):
            run(model, example_input)
    finally:
        for handle in handles:
            handle.remove()
    once = {name: sources[0] for name, sources in calls.items() if len(sources) == 1}
    return {source: name for name, source in once.items() if source is not None}
