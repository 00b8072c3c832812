"""Removes units for good: a smaller model that computes what the masked one computes.

Parameters and buffers are index-selected, the sizes that modules remember are corrected, and the
Hugging Face config is changed where it can say the new shapes. Given an example input, the result
proves itself against the masked model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.model.unit_symbols import tensors_in
from sparsecraft.model.units import (
    Keep,
    UnitGroup,
    apply_units,
    checked_keep,
    default_input,
    evaluating,
    find_units,
    run,
    shared_path,
)

# Where modules and configs of attention remember how many heads there are.
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
# Where they remember heads * head size.
_WIDTHS = ("all_head_size", "split_size", "embed_dim", "hidden_size", "inner_dim")
# Where configs say how wide a head is.
_HEAD_SIZES = ("head_dim", "d_kv")
# Where configs say how wide the feed-forward layers are.
_NEURONS = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "d_ff", "hidden_dim")


@dataclass(frozen=True)
class UnitReport:
    """What a compaction did.

    Args:
        parameters_before: Number of parameters, shared ones counted once.
        parameters_after: The same of the smaller model.
        kept: Group name to (units kept, units there were).
        plain: Whether the model loads anywhere: its class, built from its changed config, has
            exactly these shapes.
        why_not_plain: The reason, empty if it is.
    """

    parameters_before: int
    parameters_after: int
    kept: Mapping[str, tuple[int, int]]
    plain: bool
    why_not_plain: str = ""


@dataclass(frozen=True)
class IndexMap(Mapping[str, Mapping[int, Tensor]]):
    """Where each entry of the smaller model came from: tensor name to axis to old indices.

    Args:
        indices: Names of tensors that changed, each with the old index of every entry kept.
        keep: The masks by group that made it; with them `compact` makes the same shapes again.
        report: Sizes before and after, and whether the result loads anywhere.
    """

    indices: Mapping[str, Mapping[int, Tensor]]
    keep: Keep
    report: UnitReport

    def __getitem__(self, name: str) -> Mapping[int, Tensor]:
        return self.indices[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


@torch.no_grad()
def compact(
    model: nn.Module,
    keep: Keep,
    example_input: Any = None,
    *,
    groups: Sequence[UnitGroup] | None = None,
    tolerance: float | None = None,
) -> tuple[nn.Module, IndexMap]:
    """Returns a smaller copy of the model without the removed units, and the index map.

    Args:
        model: The model; it is left as it was.
        keep: Group name to bool (size,), True for units that stay; other groups stay whole.
        example_input: A small input. If given, the smaller model must give on it what the masked
            one gives. Where neither it nor `groups` is given, one is guessed.
        groups: From `find_units`, if they are at hand.
        tolerance: Largest difference allowed in the proof, relative to the largest output; by
            default 1e-4, for half precision 2e-2.

    Raises:
        UnknownName: For a name that is no group's.
        InvalidValue: For a mask of another length or type, one that keeps nothing, a module whose
            sizes cannot be corrected, or a proof that fails.

    Example:
        >>> mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> keep = {"0": torch.tensor([True, False] * 4)}
        >>> smaller, index_map = compact(mlp, keep, torch.rand(2, 4))
        >>> smaller[0].weight.shape, index_map["2.weight"][1]
        (torch.Size([4, 4]), tensor([0, 2, 4, 6]))
    """
    if groups is None:
        example_input = default_input(model) if example_input is None else example_input
        groups = find_units(model, example_input)
    chosen = checked_keep(groups, keep)
    smaller = copy.deepcopy(model)
    indices = _indices(smaller, chosen)
    _select(smaller, indices)
    for group, mask in chosen:
        if group.kind == "heads":
            correct_attention(smaller, group, int(mask.sum()))
    if example_input is not None:
        _prove(model, smaller, keep, groups, example_input, tolerance)
    why_not = _make_plain(smaller, groups, {g.name: int(m.sum()) for g, m in chosen})
    report = UnitReport(
        sum(p.numel() for p in model.parameters()),
        sum(p.numel() for p in smaller.parameters()),
        {group.name: (int(mask.sum()), group.size) for group, mask in chosen},
        plain=not why_not,
        why_not_plain=why_not,
    )
    return smaller, IndexMap(indices, {group.name: mask for group, mask in chosen}, report)


def _indices(
    model: nn.Module, chosen: Sequence[tuple[UnitGroup, Tensor]]
) -> dict[str, dict[int, Tensor]]:
    """Returns tensor name to axis to the entries that stay."""
    shapes = {n: t.shape for n, t in [*model.named_parameters(), *model.named_buffers()]}
    stay: dict[str, dict[int, Tensor]] = {}
    for group, mask in chosen:
        gone = (~mask).nonzero().reshape(-1)
        for each in group.slices:
            axes = stay.setdefault(each.parameter, {})
            size = shapes[each.parameter][each.dim]
            flags = axes.setdefault(each.dim, torch.ones(size, dtype=torch.bool))
            flags[each.indices(gone)] = False
    return {
        name: {dim: flags.nonzero().reshape(-1) for dim, flags in axes.items()}
        for name, axes in stay.items()
    }


def _select(model: nn.Module, indices: Mapping[str, Mapping[int, Tensor]]) -> None:
    """Keeps of each tensor the named entries."""
    old = dict([*model.named_parameters(), *model.named_buffers()])
    chosen: dict[str, Tensor] = {}
    for name, axes in indices.items():
        data = old[name].detach()
        for dim, index in axes.items():
            data = data.index_select(dim, index.to(data.device))
        chosen[name] = data
    replace_tensors(model, chosen)


def replace_tensors(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Puts tensors of other sizes in place wherever the old ones are used, ties included.

    Args:
        model: Changed in place; leaf modules remember the new sizes.
        values: New values by name of parameter or buffer.
    """
    old = dict([*model.named_parameters(), *model.named_buffers()])
    new: dict[int, Tensor] = {}
    for name, value in values.items():
        tensor = old[name]
        is_parameter = isinstance(tensor, nn.Parameter)
        new[id(tensor)] = nn.Parameter(value, tensor.requires_grad) if is_parameter else value
    for module in model.modules():
        for owned in (vars(module)["_parameters"], vars(module)["_buffers"]):
            changed = {k: new[id(t)] for k, t in owned.items() if t is not None and id(t) in new}
            owned.update(changed)
            if changed:
                correct_sizes(module)


def correct_sizes(module: nn.Module) -> None:
    """Makes a leaf module's remembered sizes those of its tensors."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.conv._ConvNd):
        out, inner = (1, 0) if module.transposed else (0, 1)
        if module.groups > 1:  # depthwise: the only grouped convolution whose channels are units
            module.groups = module.groups * module.weight.shape[out] // module.out_channels
        module.out_channels = module.weight.shape[out]
        module.in_channels = module.weight.shape[inner] * module.groups
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        held = module.weight if module.affine else module.running_mean
        module.num_features = held.numel() if held is not None else module.num_features
    elif isinstance(weight, Tensor) and hasattr(module, "nf"):  # transformers' Conv1D, (in, out)
        vars(module).update(nx=weight.shape[0], nf=weight.shape[1])
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.numel()


def correct_attention(model: nn.Module, group: UnitGroup, kept: int) -> None:
    """Scales the head counts and widths that the modules around its projections remember."""
    width = _outgoing_width(group) * group.size
    for path in _around(group):
        module = model.get_submodule(path)
        heads = [name for name in (*_HEADS, *_KV_HEADS) if hasattr(module, name)]
        widths = [name for name in _WIDTHS if getattr(module, name, None) == width]
        for name in (*heads, *widths):
            setattr(module, name, _scaled(getattr(module, name), kept, group))


def _around(group: UnitGroup) -> list[str]:
    """Returns the modules that hold the group's projections, up to the one that holds them all."""
    paths = [each.parameter.split(".")[:-1] for each in group.slices]
    shared = len(shared_path(group.slices))
    above = {".".join(path[:depth]) for path in paths for depth in range(shared, len(path))}
    return sorted(above)


def _scaled(value: int, kept: int, group: UnitGroup) -> int:
    if value * kept % group.size:
        raise InvalidValue(f"{group.name}: {value} heads cannot be cut to {kept}/{group.size}")
    return value * kept // group.size


def _prove(
    model: nn.Module,
    smaller: nn.Module,
    keep: Keep,
    groups: Sequence[UnitGroup],
    example_input: Any,
    tolerance: float | None,
) -> None:
    """Raises unless the smaller model gives what the masked one gives."""
    masked = copy.deepcopy(model)
    apply_units(masked, keep, groups)
    with evaluating(masked), evaluating(smaller):
        expected = tensors_in(run(masked, example_input))
        try:
            given = tensors_in(run(smaller, example_input))
        except (RuntimeError, ValueError, TypeError) as error:
            raise InvalidValue(
                f"the compact {type(model).__name__} does not run: {error}. A module keeps a size "
                f"of its own; leave the groups {sorted(keep)[:3]} out one by one to find it."
            ) from error
    for one, other in zip(expected, given, strict=True):
        allowed = (2e-2 if one.element_size() < 4 else 1e-4) if tolerance is None else tolerance
        # Written so that a NaN on either side fails.
        same = one.shape == other.shape and bool(
            ((one - other).abs() <= allowed * one.abs().max()).all()
        )
        if not same:
            raise InvalidValue(
                f"the compact {type(model).__name__} differs from the masked one: its output "
                f"{tuple(other.shape)} against {tuple(one.shape)}. Leave the groups "
                f"{sorted(keep)[:3]} out one by one to find which of them was inferred wrongly."
            )


def _make_plain(model: nn.Module, groups: Sequence[UnitGroup], kept: Mapping[str, int]) -> str:
    """Changes the config to the new shapes; returns why that is impossible, "" if it is done."""
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_dict"):
        return "the model has no config that could say its shapes"
    changed = copy.deepcopy(config)
    for kind, change in (("neurons", _set_neurons), ("heads", _set_heads)):
        sizes = {(kept.get(g.name, g.size), g.size) for g in groups if g.kind == kind}
        if all(new == old for new, old in sizes):
            continue
        if len(sizes) > 1:
            return f"the layers keep different numbers of {kind}, and the config has one number"
        for new, old in sizes:
            if not change(changed, new, old, groups):
                return f"{type(config).__name__} cannot say this number of {kind}"
    try:
        with torch.device("meta"):
            fresh = type(model)(changed)
    except (TypeError, ValueError) as error:
        return f"{type(model).__name__} cannot be built from its config: {error}"
    wanted = {name: tensor.shape for name, tensor in fresh.state_dict().items()}
    if wanted != {name: tensor.shape for name, tensor in model.state_dict().items()}:
        return f"{type(config).__name__} cannot say these shapes"
    for name, value in changed.to_dict().items():
        if name in config.to_dict() and config.to_dict()[name] != value:
            setattr(config, name, value)
    return ""


def _set_neurons(config: Any, new: int, old: int, groups: Sequence[UnitGroup]) -> bool:
    for name in _NEURONS:
        if hasattr(config, name) and getattr(config, name) in (old, None):
            setattr(config, name, new)
            return True
    return False


def _set_heads(config: Any, new: int, old: int, groups: Sequence[UnitGroup]) -> bool:
    # Without a head size of its own, a config means hidden size / heads, which would change.
    size = next((name for name in _HEAD_SIZES if name in config.to_dict()), None)
    if size is None:
        return False
    width = next(_outgoing_width(group) for group in groups if group.kind == "heads")
    names = [n for n in (*_HEADS, *_KV_HEADS) if isinstance(getattr(config, n, None), int)]
    heads = max(getattr(config, name) for name in names)
    setattr(config, size, width * old // heads)
    # Two names may be one entry of the config: read all before the first is written.
    for name, value in {name: getattr(config, name) * new // old for name in names}.items():
        setattr(config, name, value)
    return True


def _outgoing_width(group: UnitGroup) -> int:
    return next(each.width for each in group.slices if each.outgoing)
