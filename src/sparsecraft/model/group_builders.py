"""Finds the families of groups in a model, and removes groups that became zero for good.

Neurons and filters are the units of `find_units`: a filter that a residual ties to others is one
group with them, and what a unit owns of biases and BatchNorm belongs to its group, so that a group
of zeros really puts out zero. The other kinds follow from the axes of each weight.
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue, NoMatch, UnknownName
from sparsecraft.model.blocks import find_blocks
from sparsecraft.model.compaction import IndexMap, compact
from sparsecraft.model.group_slices import AxisSlice
from sparsecraft.model.groups import GroupFamily, axis_family, check_disjoint
from sparsecraft.model.targets import Target, find_targets
from sparsecraft.model.unit_symbols import tensors_in
from sparsecraft.model.units import UnitGroup, default_input, evaluating, find_units, run

GroupKind = Literal[
    "neuron", "filter", "channel", "filter_shape", "kernel", "branch", "unstructured"
]
GROUP_KINDS: tuple[GroupKind, ...] = get_args(GroupKind)
# How far the smaller model's output may be from the larger one's, relative to its largest entry.
TOLERANCE = 1e-4

Axes = Callable[[Target, int], tuple[int, ...] | None]


@torch.no_grad()
def find_groups(
    model: nn.Module,
    kind: str = "neuron",
    *,
    layers: str | Sequence[str] | None = None,
    outgoing: bool = False,
    example_input: Any = None,
) -> list[GroupFamily]:
    """Returns the families of groups of a kind, one for each layer, in model order.

    Args:
        model: Any module.
        kind: "neuron" (incoming row, bias and BatchNorm entries of a hidden neuron), "filter" (the
            same of a channel that a convolution puts out), "channel" (what reads one input),
            "filter_shape" (one place of the kernel and one input, in all filters), "kernel" (one
            kernel of one filter), "branch" (everything in a block; the blocks are one family) or
            "unstructured" (single weights).
        layers: Which layers, see `find_targets`; for "branch" the names of the blocks, as globs.
        outgoing: Whether the columns that read a neuron or filter belong to its group too. In
            consecutive layers groups would then overlap.
        example_input: A small input for "neuron" and "filter", see `find_units`.

    Raises:
        UnknownName: If there is no such kind.
        NoMatch: If the model has no such groups.
        InvalidValue: If groups overlap.

    Example:
        >>> mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> [(family.name, family.size, family.sizes[0].item()) for family in find_groups(mlp)]
        [('0', 8, 5.0)]
    """
    if kind not in GROUP_KINDS:
        raise UnknownName("kind of group", kind, GROUP_KINDS)
    if outgoing and kind not in ("neuron", "filter"):
        raise InvalidValue(f"groups of kind {kind!r} have no outgoing columns: outgoing=False")
    if kind in ("neuron", "filter"):
        families = _of_units(model, kind, layers, outgoing, example_input)
    elif kind == "branch":
        families = [_branches(model, layers)]
    else:
        families = _along_axes(model, kind, layers)
    check_disjoint(families)
    return families


@torch.no_grad()
def remove_zero_groups(
    model: nn.Module, families: Sequence[GroupFamily], example_input: Any = None
) -> tuple[nn.Module, IndexMap]:
    """Returns a smaller copy of the model without the groups that are zero, and the index map.

    Of a layer whose groups are all zero one stays, since something must pass the layer.

    Args:
        model: The trained model; it is left as it was.
        families: From `find_groups` with kind "neuron" or "filter".
        example_input: A small input, guessed where possible. The smaller model must give on it
            what the model gives.

    Raises:
        InvalidValue: If a family is not one of units, or the outputs differ.

    Example:
        >>> mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> families = find_groups(mlp)
        >>> families[0].scale_(dict(mlp.named_parameters()), torch.tensor([1.0, 0.0] * 4))
        >>> remove_zero_groups(mlp, families)[0][0].weight.shape
        torch.Size([4, 4])
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    keep: dict[str, Tensor] = {}
    groups: list[UnitGroup] = []
    for family in families:
        if family.units is None:
            raise InvalidValue(
                f"groups of {family.name} are not units of the model, so that nothing can be taken "
                "out when they are zero: find groups of kind 'neuron' or 'filter'"
            )
        active = family.active(parameters).cpu()
        active[0] |= not bool(active.any())
        keep[family.units.name] = active
        groups.append(family.units)
    inputs = _example(model) if example_input is None else example_input
    smaller, index_map = compact(model, keep, groups=groups)
    _prove(model, smaller, inputs)
    return smaller, index_map


def _prove(model: nn.Module, smaller: nn.Module, inputs: Any) -> None:
    """Raises unless both give the same; the zero groups may have put out a constant."""
    whole = copy.deepcopy(model)
    with evaluating(whole), evaluating(smaller):
        pairs = zip(tensors_in(run(whole, inputs)), tensors_in(run(smaller, inputs)), strict=True)
        for one, other in pairs:
            allowed = TOLERANCE if one.element_size() >= 4 else 2e-2
            if not bool(((one - other).abs() <= allowed * one.abs().max()).all()):
                raise InvalidValue(
                    f"{type(model).__name__} without its zero groups gives something else: a group "
                    "of zeros does not put out zero, as with a sigmoid. Take the outgoing columns "
                    "into the groups (outgoing=True)."
                )


def _example(model: nn.Module) -> Any:
    """Returns a guessed input on which the model runs, of vectors or of sequences of vectors."""
    guess = default_input(model)
    if not isinstance(guess, Tensor):
        return guess
    guess = guess.to(next(model.parameters()).dtype)
    if guess.dim() == 2:
        try:
            with evaluating(model):
                run(model, guess)
        except (RuntimeError, ValueError, TypeError, IndexError):
            return guess[:, None].expand(-1, 3, -1).contiguous()
    return guess


def _of_units(
    model: nn.Module,
    kind: str,
    layers: str | Sequence[str] | None,
    outgoing: bool,
    example_input: Any,
) -> list[GroupFamily]:
    wanted = {target.parameter for target in find_targets(model, layers)}
    shapes = _shapes(model)
    families = []
    kinds = ("neurons",) if kind == "neuron" else ("channels",)
    inputs = _example(model) if example_input is None else example_input
    for group in find_units(model, inputs, kinds):
        owned = [
            AxisSlice(each.parameter, (each.dim,), each.offset, each.width, groups=group.size)
            for each in group.slices
            if each.parameter in shapes and (outgoing or not each.outgoing)
        ]
        incoming = {each.parameter for each in group.slices if not each.outgoing}
        if incoming & wanted:
            used = {each.parameter: shapes[each.parameter] for each in owned}
            families.append(GroupFamily(group.name, group.size, tuple(owned), used, group))
    return families or _nothing(model, kind)


def _along_axes(
    model: nn.Module, kind: str, layers: str | Sequence[str] | None
) -> list[GroupFamily]:
    shapes = _shapes(model)
    families, seen = [], set()
    for target in find_targets(model, layers):
        axes = _AXES[kind](target, len(shapes[target.parameter]))
        if axes is None or target.parameter in seen:
            continue  # another kind of layer, or a fused weight that has its groups already
        seen.add(target.parameter)
        name = target.module or target.parameter
        families.append(axis_family(name, [AxisSlice(target.parameter, axes)], shapes))
    return families or _nothing(model, kind)


def _input_axis(target: Target, dims: int) -> tuple[int, ...]:
    """Returns the axis of the inputs, with that of the experts before it where there are some."""
    return (target.input_axis,) if target.index is None else (0, target.input_axis + 1)


def _kernel_axes(target: Target, dims: int) -> tuple[int, ...] | None:
    return (0, 1) if len(target.shape) > 2 else None


def _shape_axes(target: Target, dims: int) -> tuple[int, ...] | None:
    return (target.input_axis, *range(2, dims)) if len(target.shape) > 2 else None


_AXES: Mapping[str, Axes] = {
    "unstructured": lambda target, dims: tuple(range(dims)),
    "channel": _input_axis,
    "kernel": _kernel_axes,
    "filter_shape": _shape_axes,
}


def _branches(model: nn.Module, layers: str | Sequence[str] | None) -> GroupFamily:
    """Returns the family whose groups are all parameters of a block each."""
    shapes = _shapes(model)
    if layers is None:
        blocks = [f"{name}.{child}" for name, found in find_blocks(model).items()
                  for child, _ in found.named_children()]  # fmt: skip
    else:
        globs = [layers] if isinstance(layers, str) else list(layers)
        blocks = [
            name
            for name, _ in model.named_modules()
            if name and any(fnmatch.fnmatchcase(name, glob) for glob in globs)
        ]
    slices = [
        AxisSlice(name, (), first=number)
        for number, block in enumerate(blocks)
        for name in shapes
        if name.startswith(f"{block}.")
    ]
    if not slices:
        raise NoMatch(
            f"{type(model).__name__} has no blocks {layers or ''}: name the modules of its "
            "branches, as globs (layers='layer*.branch')"
        )
    return axis_family("branches", slices, shapes)


def _nothing(model: nn.Module, kind: str) -> list[GroupFamily]:
    raise NoMatch(
        f"the chosen layers of {type(model).__name__} have no groups of kind {kind!r}. Choose "
        "another kind, or other layers."
    )


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
