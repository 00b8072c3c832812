"""Sparse-Wide: every hidden width grows by k = sqrt(1 / (1 - s)), and the layers become sparse.

Widths that a residual sum, a normalisation or a reshape ties grow together: the groups of
`find_units` say which. The model's input and output keep their sizes, so that the first and the
last layer grow on one side only, as does a layer next to a stream that cannot be widened, such as
the residual stream of a transformer; that is why the sparsity is solved anew from profiled FLOPs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.methods.weights.sparse_ift.initial import normal
from sparsecraft.methods.weights.sparse_ift.scope import Scope
from sparsecraft.model.compaction import correct_attention, replace_tensors
from sparsecraft.model.targets import find_targets
from sparsecraft.model.unit_symbols import tensors_in
from sparsecraft.model.units import UnitGroup, evaluating, run


@dataclass(frozen=True)
class Widened:
    """A wider model.

    Args:
        model: A copy; its own parameters of a new size are drawn anew.
        both: Modules of the scope that grew in outputs and inputs.
        one: Modules of the scope that grew on one side only.
    """

    model: nn.Module
    both: tuple[str, ...]
    one: tuple[str, ...]


@torch.no_grad()
def widen(
    model: nn.Module,
    widths: Mapping[str, int],
    groups: Sequence[UnitGroup],
    scope: Scope,
    example_input: Any,
    seed: int = 0,
) -> Widened:
    """Returns a copy of the model whose groups have these many units.

    Everything of a new size is drawn anew: matrices normal with the standard deviation that they
    had, corrected for more inputs; biases zero; scales and running statistics at their mean.

    Args:
        model: Left as it was.
        widths: Group name to number of units, at least as many as there are.
        groups: From `find_units`.
        scope: The layers that shall grow.
        example_input: A small input, on which the wider model is tried.
        seed: Of the new weights.

    Raises:
        InvalidValue: If a layer of the scope does not grow, or the wider model does not run.
    """
    wider = copy.deepcopy(model)
    sizes = _new_sizes(wider, widths, groups)
    one, both = _growth(scope, sizes)
    _exchange(wider, sizes, seed)
    for group in groups:
        if group.kind == "heads" and widths[group.name] != group.size:
            correct_attention(wider, group, widths[group.name])
    _try(model, wider, example_input)
    return Widened(wider, both, one)


def _new_sizes(
    model: nn.Module, widths: Mapping[str, int], groups: Sequence[UnitGroup]
) -> dict[str, dict[int, int]]:
    """Returns tensor name to axis to its new size."""
    shapes = {n: t.shape for n, t in [*model.named_parameters(), *model.named_buffers()]}
    sizes: dict[str, dict[int, int]] = {}
    for group in groups:
        more = widths[group.name] - group.size
        for each in group.slices if more else ():
            axes = sizes.setdefault(each.parameter, {})
            axes[each.dim] = axes.get(each.dim, shapes[each.parameter][each.dim])
            axes[each.dim] += more * each.width
    return sizes


def _growth(
    scope: Scope, sizes: Mapping[str, Mapping[int, int]]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the modules of the scope that grow along one axis, and along both."""
    axes = {t.module: len({0, 1} & sizes.get(t.parameter, {}).keys()) for t in scope.targets}
    stuck = [module for module, number in axes.items() if not number]
    if stuck:
        raise InvalidValue(
            f"the widths of {stuck[:5]} cannot be followed through the model, or are too small to "
            "grow by this factor: these layers would stay as they are. Add them to skip, or use "
            "another family: 'parallel', 'factorized' and 'doped' keep every width."
        )
    one = tuple(module for module, number in axes.items() if number == 1)
    return one, tuple(module for module, number in axes.items() if number == 2)


def _exchange(model: nn.Module, sizes: Mapping[str, Mapping[int, int]], seed: int) -> None:
    """Puts new tensors in place wherever the old ones are used, ties included."""
    input_axis = {t.parameter: t.input_axis for t in find_targets(model, "*")}
    old = dict([*model.named_parameters(), *model.named_buffers()])
    grown: dict[str, Tensor] = {}
    for name, axes in sizes.items():
        tensor = old[name]
        shape = [axes.get(axis, size) for axis, size in enumerate(tensor.shape)]
        values = _values(name, tensor, shape, input_axis.get(name), seed)
        grown[name] = values.to(tensor.device, tensor.dtype)
    replace_tensors(model, grown)


def _values(
    name: str, old: Tensor, shape: Sequence[int], input_axis: int | None, seed: int
) -> Tensor:
    if sum(size > 1 for size in old.shape) < 2:
        return torch.full(tuple(shape), 0.0 if name.endswith("bias") else float(old.mean()))
    deviation = float(old.float().std())
    if input_axis is not None:
        deviation *= math.sqrt(old.shape[input_axis] / shape[input_axis])
    return normal(shape, deviation, seed, name)


def _try(model: nn.Module, wider: nn.Module, example_input: Any) -> None:
    with evaluating(model), evaluating(wider):
        expected = tensors_in(run(model, example_input))
        try:
            given = tensors_in(run(wider, example_input))
        except (RuntimeError, ValueError, TypeError) as error:
            raise InvalidValue(
                f"the wider {type(model).__name__} does not run: {error}. A module keeps a size "
                "of its own; add the layers around it to skip."
            ) from error
    if [each.shape for each in given] != [each.shape for each in expected]:
        raise InvalidValue(
            f"the wider {type(model).__name__} gives outputs {[tuple(t.shape) for t in given]} "
            f"in place of {[tuple(t.shape) for t in expected]}. Add the layers that make them to "
            "skip."
        )
