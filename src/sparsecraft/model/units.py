"""Units: slices over several tensors that live and die together.

A hidden neuron is its incoming row, its bias, its BatchNorm entries and its outgoing column; a
residual sum ties the channels of its branches; an attention head is rows of q, k and v and
columns of the output projection, with grouped queries a key-value head and all its query heads.
Units are found by following one forward pass (`unit_tracing`), not by the names of modules.
"""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue, MissingStatistic, NoMatch, UnknownName
from sparsecraft.model.unit_tracing import UnitTracer

Kind = Literal["neurons", "heads", "channels"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Keep = Mapping[str, Tensor]
"""Group name to bool (size,), True for the units that stay."""


@dataclass(frozen=True)
class UnitSlice:
    """What the units of a group own of one tensor: unit u has `width` entries along `dim`.

    Args:
        parameter: Name of the parameter or buffer.
        dim: The axis.
        width: Entries of each unit.
        offset: Where unit 0 begins; unit u begins at offset + u * width.
        outgoing: Whether these entries multiply the unit's output, as the next layer's columns do.
    """

    parameter: str
    dim: int
    width: int = 1
    offset: int = 0
    outgoing: bool = False

    def indices(self, units: Tensor) -> Tensor:
        """Returns the entries along `dim` of the given units: int (units * width,)."""
        return (self.offset + units[:, None] * self.width + torch.arange(self.width)).reshape(-1)


@dataclass(frozen=True)
class UnitGroup:
    """Units of one layer, or of layers that a residual ties.

    Args:
        name: The first producing module, for heads the attention module.
        kind: "neurons", "heads" or "channels".
        size: How many units.
        slices: Everything a unit owns.
    """

    name: str
    kind: Kind
    size: int
    slices: tuple[UnitSlice, ...]


def find_units(
    model: nn.Module, example_input: Any = None, kinds: Iterable[str] = KINDS
) -> list[UnitGroup]:
    """Returns the groups of units that can be removed from the model, in model order.

    Args:
        model: Any module; it is run once, in evaluation mode, and left as it was.
        example_input: A small input: a tensor, a tuple of them or a mapping of keywords. Built
            from the config or the first layer where that is possible.
        kinds: Which kinds to return.

    Raises:
        UnknownName: If a kind is none.
        InvalidValue: If the model does not run on the example input.
        NoMatch: If nothing can be removed; the message names what stood in the way.

    Example:
        >>> mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> [(group.name, group.kind, group.size) for group in find_units(mlp)]
        [('0', 'neurons', 8)]
    """
    wanted = set(kinds)
    for kind in wanted - set(KINDS):
        raise UnknownName("kind of unit", kind, KINDS)
    tracer = _trace(model, example_input)
    groups = _named(_assemble(model, tracer))
    chosen = [group for group in groups if group.kind in wanted]
    if not chosen:
        others = sorted({group.kind for group in groups})
        why = f" Operations that cannot be followed: {sorted(tracer.unknown)}." * bool(
            tracer.unknown
        )
        raise NoMatch(
            f"no units of kind {sorted(wanted)} can be inferred in {type(model).__name__}"
            + (f" (it has {others})." if others else ".")
            + why
            + " Units that reach the model's input or output, or an axis that is normalised or "
            "reduced, cannot be removed."
        )
    return chosen


@torch.no_grad()
def unit_scores(
    model: nn.Module, groups: Sequence[UnitGroup], batches: Iterable[Any]
) -> dict[str, Tensor]:
    """Returns how much each unit gives to the next layer: mean activation times outgoing norm.

    The activation of a neuron or a channel is its mean absolute value over tokens or positions,
    that of a head the mean norm of its output; where a unit feeds several layers, their products
    are added. Padding is left out where a batch has an `attention_mask`.

    Args:
        model: The model; run in evaluation mode.
        groups: From `find_units`.
        batches: Inputs, each as in `find_units`.

    Returns:
        Group name to float32 (size,).

    Raises:
        MissingStatistic: If there is no batch.
    """
    taps = [(group, each) for group in groups for each in group.slices if each.outgoing]
    readers = {tap.parameter.rpartition(".")[0] for _, tap in taps}
    sums: dict[tuple[str, UnitSlice], Tensor] = {}
    tokens: dict[str, int] = defaultdict(int)
    mask: list[Tensor | None] = [None]

    def observe(name: str, x: Tensor) -> None:
        rows = _rows(model.get_submodule(name), x, mask[0])
        tokens[name] += rows.shape[0]
        for group, tap in taps:
            if tap.parameter.rpartition(".")[0] == name:
                units = rows[:, tap.indices(torch.arange(group.size)).to(rows.device)]
                units = units.view(rows.shape[0], group.size, tap.width)
                size = units.norm(dim=-1) if group.kind == "heads" else units.abs().mean(-1)
                key = (group.name, tap)
                sums[key] = sums.get(key, 0) + size.sum(0).cpu()

    def hook(name: str) -> Any:
        return lambda module, args: observe(name, args[0])

    handles = [model.get_submodule(n).register_forward_pre_hook(hook(n)) for n in sorted(readers)]
    try:
        with evaluating(model):
            for batch in batches:
                mask[0] = batch.get("attention_mask") if isinstance(batch, Mapping) else None
                run(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    if not tokens:
        raise MissingStatistic("unit scores need at least one calibration batch; none was given")
    parameters = dict(model.named_parameters())
    scores = {group.name: torch.zeros(group.size) for group in groups}
    for group, tap in taps:
        index = tap.indices(torch.arange(group.size))
        weight = parameters[tap.parameter].float().cpu().index_select(tap.dim, index)
        columns = weight.movedim(tap.dim, 0).reshape(group.size, -1)
        mean = sums[group.name, tap] / tokens[tap.parameter.rpartition(".")[0]]
        scores[group.name] += mean * columns.norm(dim=1)
    return scores


@torch.no_grad()
def apply_units(model: nn.Module, keep: Keep, groups: Sequence[UnitGroup] | None = None) -> None:
    """Sets every parameter entry of the removed units to zero, in place.

    BatchNorm's running statistics stay: with scale and shift zero they have no effect.

    Args:
        model: The model.
        keep: Group name to bool (size,); groups left out stay whole.
        groups: From `find_units`, if they are at hand.

    Raises:
        UnknownName: For a name that is no group's.
        InvalidValue: For a mask of another length or type, or one that keeps nothing.
    """
    parameters = dict(model.named_parameters())
    for group, mask in checked_keep(groups or find_units(model), keep):
        gone = (~mask).nonzero().reshape(-1)
        for each in group.slices:
            if each.parameter in parameters:
                tensor = parameters[each.parameter]
                tensor.index_fill_(each.dim, each.indices(gone).to(tensor.device), 0)


def checked_keep(groups: Sequence[UnitGroup], keep: Keep) -> list[tuple[UnitGroup, Tensor]]:
    """Returns each named group with its mask on the CPU; see `apply_units` for what is raised."""
    by_name = {group.name: group for group in groups}
    pairs = []
    for name, mask in keep.items():
        if name not in by_name:
            raise UnknownName("group of units", name, by_name)
        size = by_name[name].size
        if mask.dtype != torch.bool or tuple(mask.shape) != (size,):
            raise InvalidValue(
                f"{name}: the mask is {mask.dtype} of shape {tuple(mask.shape)}; the group has "
                f"{size} {by_name[name].kind}, so give a torch.bool tensor of shape ({size},)."
            )
        if not bool(mask.any()):
            raise InvalidValue(
                f"{name}: the mask removes all {size} {by_name[name].kind}, and nothing could pass "
                "the layer. Keep at least one."
            )
        pairs.append((by_name[name], mask.cpu()))
    return pairs


def run(model: nn.Module, inputs: Any) -> Any:
    """Returns the model's output for a tensor, a tuple of tensors or a mapping of keywords."""
    device = next(iter(model.parameters())).device
    if isinstance(inputs, Mapping):
        return model(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()})
    given = inputs if isinstance(inputs, tuple | list) else (inputs,)
    return model(*[each.to(device) if isinstance(each, Tensor) else each for each in given])


def _trace(model: nn.Module, example_input: Any) -> UnitTracer:
    inputs = default_input(model) if example_input is None else example_input
    tracer = UnitTracer(dict([*model.named_parameters(), *model.named_buffers()]))
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one fused operation would hide the heads
    try:
        with torch.no_grad(), evaluating(model), tracer:
            output = run(model, inputs)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise InvalidValue(
            f"{type(model).__name__} does not run on the example input: {error}. "
            "Give one that it accepts (example_input=...)."
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    tracer.freeze(output)
    return tracer


def default_input(model: nn.Module) -> Any:
    """Returns two small inputs, from the config of a transformers model or the first layer."""
    config: Any = getattr(model, "config", None)
    if getattr(model, "main_input_name", None) == "pixel_values":
        size = getattr(config, "image_size", 64)
        sides = size if isinstance(size, list | tuple) else (size, size)
        return {"pixel_values": _ramp(2, getattr(config, "num_channels", 3), *sides)}
    if hasattr(config, "vocab_size"):
        return {"input_ids": (torch.arange(16) % config.vocab_size).view(2, 8)}
    first = next((m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)), None)
    if isinstance(first, nn.Linear):
        return _ramp(2, first.in_features)
    if isinstance(first, nn.Conv2d):
        return _ramp(2, first.in_channels, 32, 32)
    raise InvalidValue(
        f"no input for {type(model).__name__} can be guessed. Give a small one (example_input=...)."
    )


def _ramp(*shape: int) -> Tensor:
    """Returns values from -1 to 1; random ones would move the caller's random state."""
    return torch.linspace(-1, 1, math.prod(shape)).view(shape)


def _assemble(model: nn.Module, tracer: UnitTracer) -> list[UnitGroup]:
    """Returns the groups made of all classes of symbols that are not frozen."""
    symbols = tracer.symbols
    roots = symbols.find(torch.arange(symbols.parent.numel()))
    frozen = torch.zeros_like(symbols.frozen).index_put_(
        (roots[symbols.frozen],), torch.tensor(True)
    )
    split = torch.zeros_like(symbols.split).index_put_((roots[symbols.split],), torch.tensor(True))
    shapes = {n: t.shape for n, t in [*model.named_parameters(), *model.named_buffers()]}
    owned: dict[int, dict[tuple[str, int], list[int]]] = defaultdict(lambda: defaultdict(list))
    for (name, dim), first in tracer.first.items():
        for index, root in enumerate(roots[first : first + shapes[name][dim]].tolist()):
            if not frozen[root]:
                owned[root][name, dim].append(index)
    families: dict[tuple[tuple[str, int, int], ...], list[int]] = defaultdict(list)
    for root, entries in owned.items():
        families[tuple((*key, len(indices)) for key, indices in entries.items())].append(root)
    groups = []
    for family, members in families.items():
        keys = [(name, dim) for name, dim, _ in family]
        rows = [{key: owned[root][key] for key in keys} for root in members]
        outgoing = {k for k in keys if bool(symbols.outgoing[tracer.first[k] + rows[0][k][0]])}
        slices = _slices(rows, outgoing)
        if slices and outgoing and len(members) > 1:
            kind = _kind(shapes, slices, bool(split[members[0]]))
            groups.append(UnitGroup(_name(kind, slices), kind, len(members), slices))
    return groups


def _slices(
    rows: list[dict[tuple[str, int], list[int]]], outgoing: set[tuple[str, int]]
) -> tuple[UnitSlice, ...] | None:
    """Returns the slices that describe the entries of all units, or None if none can."""
    order = sorted(rows, key=lambda row: next(iter(row.values())))
    found = []
    for name, dim in rows[0]:
        table = torch.tensor([row[name, dim] for row in order])  # (units, entries)
        breaks = ((table[:, 1:] - table[:, :-1]) != 1).any(0).nonzero().reshape(-1) + 1
        starts = [0, *breaks.tolist()]
        ends = [*starts[1:], table.shape[1]]
        for start, end in zip(starts, ends, strict=True):
            each = UnitSlice(
                name, dim, end - start, int(table[0, start]), outgoing=(name, dim) in outgoing
            )
            if not torch.equal(
                each.indices(torch.arange(len(rows))), table[:, start:end].flatten()
            ):
                return None
            found.append(each)
    return tuple(found)


def _kind(shapes: Mapping[str, Sequence[int]], slices: Sequence[UnitSlice], split: bool) -> Kind:
    if any(len(shapes[each.parameter]) > 2 and each.dim < 2 for each in slices):
        return "channels"
    return "heads" if split else "neurons"


def shared_path(slices: Sequence[UnitSlice]) -> list[str]:
    """Returns the path of the innermost module that holds all these slices."""
    levels = zip(*(each.parameter.split(".")[:-1] for each in slices), strict=False)
    return [level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels)]


def _name(kind: Kind, slices: Sequence[UnitSlice]) -> str:
    common = ".".join(shared_path(slices)) if kind == "heads" else ""
    return common or slices[0].parameter.rpartition(".")[0] or slices[0].parameter


def _named(groups: list[UnitGroup]) -> list[UnitGroup]:
    """Returns the groups with distinct names."""
    seen: dict[str, int] = defaultdict(int)
    named = []
    for group in groups:
        seen[group.name] += 1
        suffix = f"#{seen[group.name]}" if seen[group.name] > 1 else ""
        named.append(UnitGroup(group.name + suffix, group.kind, group.size, group.slices))
    return named


def _rows(reader: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    """Returns a layer's input as float32 (tokens or positions, features), padding left out."""
    if isinstance(reader, nn.modules.conv._ConvNd):
        x = x.movedim(1, -1)
    rows = x.reshape(-1, x.shape[-1]).float()
    if mask is not None and mask.dim() == 2 and mask.numel() == rows.shape[0]:
        return rows[mask.reshape(-1).bool().to(rows.device)]
    return rows


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Holds the model in evaluation mode; each module gets its own mode back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
