"""Channels of a network by the names of their batch normalisations, and their removal for good.

The scale of a BatchNorm says whether a channel matters; what goes with it (filters, biases,
statistics, the columns of every layer that reads it, the channels a residual adds to it) is found
by following one forward pass (`units`). Masks are by the name of the BatchNorm, True where a
channel is kept. Normalisations whose channels are added must agree, unless a `tie` is asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparsecraft.core.channel_masks import Tie, check_mask, tied
from sparsecraft.core.errors import InvalidValue, NoMatch, UnknownName
from sparsecraft.core.seeds import derive
from sparsecraft.model.bias_absorption import Borders, absorb_constants
from sparsecraft.model.compaction import IndexMap, compact
from sparsecraft.model.units import UnitGroup, default_input, find_units


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that live and die together, and where each normalisation has them.

    Args:
        units: The group as `find_units` gives it, with everything that its channels own.
        entries: (BatchNorm, int (size,)) pairs: which of its channels belongs to each unit. A
            BatchNorm after a flatten has several, one for each position.
    """

    units: UnitGroup
    entries: tuple[tuple[str, Tensor], ...]

    @property
    def name(self) -> str:
        """The group's name, that of the first layer that makes its channels."""
        return self.units.name

    @property
    def norms(self) -> tuple[str, ...]:
        """Names of the normalisations, each once."""
        return tuple(dict.fromkeys(name for name, _ in self.entries))


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Returns every BatchNorm that has a scale, by name, in model order."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.affine
    }


def channel_groups(model: nn.Module, example_input: Any = None) -> list[ChannelGroup]:
    """Returns the groups of channels that can be removed and that a BatchNorm scales.

    Args:
        model: Any network; it is run once in evaluation mode and left as it was.
        example_input: A small input, guessed where that is possible.

    Raises:
        NoMatch: If there is none.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3))
        >>> [(group.name, group.norms) for group in channel_groups(net)]
        [('0', ('1',))]
    """
    norms = batch_norms(model)
    found = []
    for units in find_units(model, example_input, kinds=("channels", "neurons")):
        entries = []
        for each in units.slices:
            name, _, short = each.parameter.rpartition(".")
            if name in norms and short == "weight":
                table = each.indices(torch.arange(units.size)).view(units.size, each.width)
                entries += [(name, column) for column in table.T]
        if entries:
            found.append(ChannelGroup(units, tuple(entries)))
    if not found:
        raise NoMatch(
            f"{type(model).__name__} has no channel that can be removed and that a BatchNorm with "
            f"a scale normalises; it has {len(norms)} such BatchNorm layers."
        )
    return found


def prune_channels(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    *,
    absorb_bias: bool | Borders = False,
    example_input: Any = None,
    tie: Tie | None = None,
) -> tuple[nn.Module, IndexMap]:
    """Returns a smaller copy of the network without the removed channels, and the index map.

    With its scale near zero a channel still gives a constant, act(shift), to the next layer.
    Without `absorb_bias` it is lost, and training afterwards has to make up for it.

    Args:
        model: The network; it is left as it was.
        masks: bool (channels,) by the name of a BatchNorm, or of its scale ("norm.weight" as in a
            report's mask); True where a channel is kept. Layers left out stay whole.
        absorb_bias: Whether the constants are folded into what follows, see `absorb_constants`:
            exact except next to a zero-padded border. "mean" folds their mean over all positions.
        example_input: A small input, guessed where that is possible.
        tie: How normalisations that share channels are made one where their masks differ; None
            takes this for a mistake. A layer left out counts as one that keeps everything.

    Returns:
        The smaller network, and where each of its entries came from; `index_map.keep` makes the
        same shapes again.

    Raises:
        UnknownName: For a name that is no BatchNorm's.
        InvalidValue: For a mask of another length or type, one that empties a layer, one that
            removes what cannot be removed, masks that differ where channels are tied, or a
            channel that is to be absorbed but not constant.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3))
        >>> smaller, _ = prune_channels(net, {"1": torch.tensor([True, False, True, True])})
        >>> smaller[0].weight.shape, smaller[2].weight.shape
        (torch.Size([3, 1, 3, 3]), torch.Size([2, 3, 3, 3]))
    """
    example_input = default_input(model) if example_input is None else example_input
    groups = channel_groups(model, example_input)
    keep = unit_masks(model, masks, groups, tie)
    units = [group.units for group in groups]
    if absorb_bias is not False:
        model = copy.deepcopy(model)
        borders: Borders = "interior" if absorb_bias is True else absorb_bias
        gone = {group.units: ~keep[group.name] for group in groups if group.name in keep}
        absorb_constants(model, gone, example_input, borders=borders)
    return compact(model, keep, example_input, groups=units)


def unit_masks(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    groups: Sequence[ChannelGroup],
    tie: Tie | None = None,
) -> dict[str, Tensor]:
    """Returns the masks by group, as `compact` reads them; see `prune_channels`.

    Raises:
        UnknownName: For a name that is no BatchNorm's.
        InvalidValue: See `prune_channels`.
    """
    given = _checked(model, masks)
    covered = {name: torch.zeros_like(keep) for name, keep in given.items()}
    scales = {name: norm.weight.detach().cpu() for name, norm in batch_norms(model).items()}
    keep_units = {}
    for group in groups:
        if not set(group.norms) & set(given):
            continue
        keeps = []
        for name, index in group.entries:
            keeps.append(given[name][index] if name in given else torch.ones_like(index).bool())
            if name in covered:
                covered[name][index] = True
        if tie is None:
            _check_agreement(group, keeps)
            keep_units[group.name] = keeps[0]
        else:
            sizes = [scales[name][index] for name, index in group.entries]
            keep_units[group.name] = tied(keeps, tie, sizes)
    for name, keep in given.items():
        if stuck := int((~keep & ~covered[name]).sum()):
            raise InvalidValue(
                f"{name}: {stuck} of the channels to remove cannot be removed: they reach the "
                "model's output, an axis that is normalised or reduced, or an operation that "
                "cannot be followed. Keep them."
            )
    return keep_units


def from_scratch(model: nn.Module, seed: int = 0) -> nn.Module:
    """Returns a copy with fresh weights: the control that trains the pruned shape from nothing.

    Args:
        model: A network whose modules know how to reset themselves, as those of torch do.
        seed: Of the initial weights; the caller's random state is left alone.

    Raises:
        InvalidValue: If a module owns parameters and has no `reset_parameters`.
    """
    fresh = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "from scratch") % 2**63)
        for name, module in fresh.named_modules():
            if next(module.parameters(recurse=False), None) is None:
                continue
            reset = getattr(module, "reset_parameters", None)
            if reset is None:
                raise InvalidValue(
                    f"{name or type(module).__name__} ({type(module).__name__}) has no "
                    "reset_parameters, so it cannot start anew. Build the network yourself."
                )
            reset()
    return fresh


def _checked(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the masks on the CPU by the name of the BatchNorm."""
    modules = dict(model.named_modules())
    norms = batch_norms(model)
    given = {}
    for key, keep in masks.items():
        name = key if key in modules else key.removesuffix(".weight")
        module = modules.get(name)
        if isinstance(module, _BatchNorm) and not module.affine:
            raise InvalidValue(
                f"{name}: this BatchNorm has no scale (affine=False), so its channels have no mask"
            )
        if name not in norms:
            raise UnknownName("BatchNorm layer", key, norms)
        given[name] = check_mask(name, keep, norms[name].weight.numel()).cpu()
    return given


def _check_agreement(group: ChannelGroup, keeps: Sequence[Tensor]) -> None:
    for (name, _), keep in zip(group.entries, keeps, strict=True):
        if not torch.equal(keep, keeps[0]):
            raise InvalidValue(
                f"{group.entries[0][0]} and {name} share channels (group {group.name!r}), but "
                f"their masks differ in {int((keep != keeps[0]).sum())} places. Give them one "
                "mask, or ask for tie='vote' or tie='intersection'."
            )
