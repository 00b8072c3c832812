"""Folds the constants of removed channels into what follows them.

A channel whose BatchNorm scale is zero gives the same value everywhere: its shift, after the
activation and whatever else lies on the way. The constant that arrives at each reader is measured
there, not inferred, so that any activation, sum or pooling in between is right. A reader that pads
with zeros sees less of it next to the border, where no bias can be exact.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.model.direct_readers import direct_readers
from sparsecraft.model.units import UnitGroup, UnitSlice, evaluating, run

Reader = nn.Linear | nn.modules.conv._ConvNd
Borders = Literal["interior", "mean"]
BORDERS: tuple[Borders, ...] = get_args(Borders)


@torch.no_grad()
def absorb_constants(
    model: nn.Module,
    gone: Mapping[UnitGroup, Tensor],
    example_input: Any,
    *,
    borders: Borders = "interior",
) -> dict[str, str]:
    """Adds to each reader what the removed channels will no longer give it, in place.

    It goes into the reader's bias; where it has none, into the running mean of the BatchNorm that
    reads it; where there is none either, the reader gets a bias, and with it a new key.

    Args:
        model: A network in which the channels are still there.
        gone: bool (size,) by group, True for the channels that will be removed. Their scales are
            taken for zero.
        example_input: A small input.
        borders: "interior" is exact wherever a reader's window lies inside the picture. "mean"
            folds the mean over all positions of the example's size instead, which errs less in
            pictures that are mostly border.

    Returns:
        Reader to where its constants went: the name of a tensor.

    Raises:
        UnknownName: If `borders` is none.
        InvalidValue: If a channel is not constant although its scale is zero, or its reader is
            neither linear nor an ordinary convolution.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 1))
        >>> from sparsecraft.model.units import find_units
        >>> (group,) = find_units(net)
        >>> absorb_constants(net, {group: torch.tensor([True, False, False])}, torch.rand(4, 2))
        {'3': '3.bias'}
    """
    if borders not in BORDERS:
        raise UnknownName("treatment of borders", borders, BORDERS)
    taps: dict[str, list[tuple[UnitGroup, UnitSlice]]] = {}
    readers: dict[str, Reader] = {}
    for group, removed in gone.items():
        for each in group.slices if bool(removed.any()) else ():
            if each.outgoing:
                name = each.parameter.rpartition(".")[0]
                readers[name] = _reader(model, group, name)
                taps.setdefault(name, []).append((group, each))
    silent = copy.deepcopy(model)
    _silence(silent, gone)
    seen = _inputs(silent, list(taps), example_input)
    followers = direct_readers(model, example_input)
    places = {}
    for name, pairs in taps.items():
        reader = readers[name]
        total = reader.weight.new_zeros(len(reader.weight))
        for group, each in pairs:
            index = each.indices(gone[group].nonzero().reshape(-1)).to(total.device)
            constant = _constant(seen[name], reader, index, group)
            total += _response(reader, index, constant, borders)
        places[name] = _fold(model, name, reader, total, followers.get(name, []))
    return places


def _reader(model: nn.Module, group: UnitGroup, name: str) -> Reader:
    """Returns the module that reads the group, if it has a bias or can have one."""
    module = model.get_submodule(name)
    if isinstance(module, nn.Linear):
        return module
    if isinstance(module, nn.modules.conv._ConvNd) and not module.transposed:
        return module
    raise InvalidValue(
        f"{group.name}: its constants cannot be absorbed into {name} ({type(module).__name__}), "
        "which is neither linear nor an ordinary convolution. Prune with absorb_bias=False and "
        "train afterwards."
    )


def _silence(model: nn.Module, gone: Mapping[UnitGroup, Tensor]) -> None:
    """Sets the scales of the removed channels to zero."""
    for group, removed in gone.items():
        for each in group.slices:
            name, _, short = each.parameter.rpartition(".")
            module = model.get_submodule(name)
            if isinstance(module, _BatchNorm) and short == "weight":
                index = each.indices(removed.nonzero().reshape(-1))
                module.weight.index_fill_(0, index.to(module.weight.device), 0)


def _inputs(model: nn.Module, readers: list[str], example_input: Any) -> dict[str, list[Tensor]]:
    """Returns what each reader is given, for the example and for another input like it."""
    seen: dict[str, list[Tensor]] = {name: [] for name in readers}

    def hook(name: str) -> Any:
        return lambda module, args: seen[name].append(args[0].clone())

    handles = [model.get_submodule(n).register_forward_pre_hook(hook(n)) for n in readers]
    try:
        with evaluating(model):
            run(model, example_input)
            run(model, tree_map(_another, example_input))
    finally:
        for handle in handles:
            handle.remove()
    for name, given in seen.items():
        if not given:
            raise InvalidValue(
                f"{name}: its forward method is never called, so what it reads cannot be "
                "measured. Prune with absorb_bias=False and train afterwards."
            )
    return seen


def _another(value: Any) -> Any:
    return value.cos() if isinstance(value, Tensor) and value.is_floating_point() else value


def _constant(given: list[Tensor], module: Reader, index: Tensor, group: UnitGroup) -> Tensor:
    """Returns what the removed channels give: (channels, *positions), positions of a convolution.

    Raises:
        InvalidValue: If it is not the same for all examples.
    """
    rows = []
    for x in given:
        if isinstance(module, nn.Linear):
            rows.append(x.reshape(-1, x.shape[-1])[:, index])
        else:
            batched = x if x.dim() == module.weight.dim() else x.unsqueeze(0)
            rows.append(batched[:, index])
    values = torch.cat(rows)
    spread = float((values - values[:1]).abs().max())
    allowed = 1e-5 if values.element_size() > 2 else 1e-2
    if spread > allowed * max(1.0, float(values.abs().max())):
        raise InvalidValue(
            f"{group.name}: some removed channels are not constant although their scale is zero "
            f"(they vary by {spread:.2g}): something without a BatchNorm is added to them. "
            "Prune with absorb_bias=False and train afterwards."
        )
    return values[0]


def _response(reader: Reader, index: Tensor, constant: Tensor, borders: Borders) -> Tensor:
    """Returns what the constants add to the reader's outputs, (outputs,)."""
    columns = reader.weight[:, index]
    if isinstance(reader, nn.Linear):
        return columns @ constant
    if borders == "interior":
        for size in constant.shape[1:]:
            constant = constant[:, size // 2]
        return columns.flatten(2).sum(2) @ constant
    picture = constant.new_zeros(1, reader.in_channels, *constant.shape[1:])
    answer = -reader(picture)
    picture[0, index] = constant
    answer += reader(picture)
    return answer[0].flatten(1).mean(1)


def _fold(model: nn.Module, name: str, reader: Reader, total: Tensor, followers: list[str]) -> str:
    """Returns the name of the tensor that the constants were added to."""
    if reader.bias is not None:
        reader.bias += total
        return f"{name}.bias"
    norm = model.get_submodule(followers[0]) if len(followers) == 1 else None
    if isinstance(norm, _BatchNorm):
        if norm.running_mean is not None:  # else the batch's own mean takes the constants away
            norm.running_mean -= total
        return f"{followers[0]}.running_mean"
    reader.bias = nn.Parameter(total, requires_grad=reader.weight.requires_grad)
    return f"{name}.bias"
