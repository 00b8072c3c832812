"""Folds a trained transformation back into plain layers, where that is possible.

In evaluation mode batch normalisation is affine, so that parallel branches with it are one
layer, V U is one matrix, and W + V U is one too. What this costs stands in the report: a sum of
branches is denser than each of them, and a doped layer becomes dense.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.methods.weights.sparse_ift.doped import DopedLayer
from sparsecraft.methods.weights.sparse_ift.factorized import FactorizedLayer
from sparsecraft.methods.weights.sparse_ift.parallel import ParallelLayer
from sparsecraft.model.unit_symbols import tensors_in
from sparsecraft.model.units import evaluating, run

_NORM = nn.modules.batchnorm._BatchNorm
_FAMILIES = (ParallelLayer, FactorizedLayer, DopedLayer)


@dataclass(frozen=True)
class FoldReport:
    """What `fold` did.

    Args:
        densities: Folded layer to the fraction of its weights that is not zero.
        left: Layer to why it stays as it is.
        notes: What is worth knowing besides.
    """

    densities: Mapping[str, float]
    left: Mapping[str, str]
    notes: tuple[str, ...] = ()


@torch.no_grad()
def fold(model: nn.Module, example_input: Any = None) -> tuple[nn.Module, FoldReport]:
    """Returns a copy for evaluation with one plain layer in place of each folded one.

    Args:
        model: What `sparse_ift` returned, trained and finalized; left as it was.
        example_input: If given, the copy must give on it what the model gives, to a relative
            1e-5 in single and 1e-10 in double precision.

    Raises:
        InvalidValue: If the model has no layer of a family, or the copies differ.

    Example:
        >>> layer = DopedLayer(nn.Linear(6, 4), rank=2)
        >>> folded, report = fold(nn.Sequential(layer), torch.ones(1, 6))
        >>> folded[0], report.densities
        (Linear(in_features=6, out_features=4, bias=True), {'0': 1.0})
    """
    folded = copy.deepcopy(model).eval()
    found = {name: each for name, each in folded.named_modules() if isinstance(each, _FAMILIES)}
    if not found:
        raise InvalidValue(
            f"{type(model).__name__} has no parallel, factorised or doped layer: a Sparse-Wide "
            "model is plain already"
        )
    densities: dict[str, float] = {}
    left: dict[str, str] = {}
    notes: list[str] = []
    for name, module in found.items():
        why_not = _why_not(module)
        if why_not:
            left[name] = why_not
            continue
        layer = _folded(module)
        densities[name] = int((layer.weight != 0).sum()) / layer.weight.numel()
        if not name:
            folded = layer
        else:
            folded.set_submodule(name, layer)
    doped = [n for n, each in found.items() if isinstance(each, DopedLayer) and each.rank]
    if doped:
        notes.append(f"{len(doped)} doped layers are dense now: W + V U has no zeros")
    if example_input is not None:
        _prove(model, folded, example_input)
    return folded, FoldReport(densities, left, tuple(notes))


def _why_not(module: Any) -> str:
    norms: list[nn.Module] = []
    if isinstance(module, ParallelLayer):
        branches: list[Any] = list(module.branches)
        norms = [branch[1] for branch in branches]
        if not all(isinstance(each, _NORM) for each in norms):
            return "an activation stands between the branches and their sum"
    if isinstance(module, FactorizedLayer):
        norms = [each for each in module.middle if isinstance(each, _NORM)]
        if len(norms) < len(module.middle):
            return "an activation stands between U and V"
    if any(each.running_mean is None for each in norms):
        return "its normalisation keeps no running statistics"
    return ""


def _folded(module: Any) -> Any:
    """Returns one plain layer that computes what the module computes."""
    if isinstance(module, ParallelLayer):
        branches: list[Any] = list(module.branches)
        parts = [_normalised(*branch) for branch in branches]
        return _plain(branches[0][0], sum(w for w, _ in parts), sum(b for _, b in parts))
    if isinstance(module, FactorizedLayer):
        first, shift = module.U.weight.double(), None
        if len(module.middle):
            first, shift = _normalised(module.U, module.middle[0])
        bias = None if module.V.bias is None else module.V.bias.double()
        if shift is not None:
            bias = module.V.weight.double().flatten(1) @ shift + (0 if bias is None else bias)
        return _plain(module.U, product(module.V.weight.double(), first), bias)
    weight = module.W.weight.double()
    if module.rank:
        weight = weight + product(module.V.weight.double(), module.U.weight.double())
    return _plain(module.W, weight, None if module.W.bias is None else module.W.bias.double())


def product(second: Tensor, first: Tensor) -> Tensor:
    """Returns V U as the weight of one layer.

    Args:
        second: V, (outputs, rank) or (outputs, rank, 1, ...).
        first: U, (rank, inputs, *kernel).
    """
    return torch.tensordot(second.flatten(1), first, dims=1)


def _normalised(layer: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Returns weight and bias, in double precision, of a layer with its normalisation."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.double()
    bias = 0 if layer.bias is None else layer.bias.double()
    shift = (bias - norm.running_mean.double()) * scale
    shift = shift if norm.bias is None else shift + norm.bias.double()
    weight = layer.weight.double()
    return weight * scale.view(-1, *[1] * (weight.dim() - 1)), shift


def _plain(template: Any, weight: Any, bias: Any) -> Any:
    """Returns a layer of the template's kind, kernel and place with this weight and bias."""
    layer = copy.deepcopy(template)
    dtype, device = template.weight.dtype, template.weight.device
    layer.weight = nn.Parameter(weight.to(device, dtype))
    layer.bias = None if bias is None else nn.Parameter(bias.to(device, dtype))
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    else:
        layer.out_channels, layer.in_channels = layer.weight.shape[:2]
    return layer.eval()


def _prove(model: nn.Module, folded: nn.Module, example_input: Any) -> None:
    with evaluating(model):
        expected = tensors_in(run(model, example_input))
        given = tensors_in(run(folded, example_input))
    for one, other in zip(expected, given, strict=True):
        allowed = {torch.float64: 1e-10, torch.float32: 1e-5}.get(one.dtype, 2e-2)
        largest = one.abs().max()
        # Written so that a NaN on either side fails.
        if not bool(((one - other).abs() <= allowed * largest).all()):
            difference = float((one - other).abs().max() / largest)
            raise InvalidValue(
                f"the folded {type(model).__name__} differs from the trained one by a relative "
                f"{difference:.1e}; {allowed:g} is allowed. Fold it in double precision "
                "(model.double()), or keep the model as it is."
            )
