"""The physically smaller model of a finished sparse training, where whole units have gone.

Methods that press on the scales of channels (network slimming, MaskSparsity) have their own
surgery. For all others a unit goes when nothing reads it, or when its incoming weights are all
zero: what it still gives is then a constant, which is folded into what reads it. The smaller model
is compared with the masked one on a real batch; what would not compute the same is not removed.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.kinds import InTraining
from sparsecraft.core.mask import Mask
from sparsecraft.methods.weights.group_prox import GroupMethod
from sparsecraft.methods.weights.network_slimming import SparseScales
from sparsecraft.model.bias_absorption import absorb_constants
from sparsecraft.model.channels import prune_channels
from sparsecraft.model.compaction import IndexMap, compact
from sparsecraft.model.unit_symbols import tensors_in
from sparsecraft.model.units import Keep, UnitGroup, UnitSlice, evaluating, find_units, run

TOLERANCE = 1e-4
"""Largest difference of outputs that still counts as the same, relative to the largest output."""
Batch = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class CompactForm:
    """A smaller model and what became of the masked one in it.

    Args:
        model: The smaller model, in evaluation mode.
        mask: What is still masked in it, by parameter name.
        keep: Group name to bool, True for the units that stay: with it `compact` makes the same
            shapes of a fresh model.
        plain: Whether its own config says its shapes.
        difference: From the masked model on the example, relative to the largest output.
        note: What the reader must know of it, or empty.
    """

    model: nn.Module
    mask: Mask
    keep: Keep
    plain: bool
    difference: float
    note: str = ""

    @property
    def parameters(self) -> int:
        """How many parameters it stores."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def kept(self) -> int:
        """How many of them are not masked."""
        return self.parameters - (self.mask.numel - self.mask.kept)

    @property
    def units(self) -> tuple[int, int]:
        """Units kept, and units there were in the layers that lost some."""
        return (
            sum(int(keep.sum()) for keep in self.keep.values()),
            sum(keep.numel() for keep in self.keep.values()),
        )


def removes_units(method: InTraining) -> bool:
    """Returns whether it is a method's own purpose to remove whole channels or neurons."""
    if isinstance(method, GroupMethod):
        return method.groups in ("neuron", "filter")
    return isinstance(method, SparseScales)


def compact_form(
    model: nn.Module,
    method: InTraining,
    mask: Mask,
    example: Batch,
    *,
    absorb_bias: bool = False,
) -> CompactForm | None:
    """Returns the smaller form of a finished model, or None where no whole unit has gone.

    Args:
        model: The finished model; it is left as it was.
        method: What made it sparse.
        mask: Its masks, by parameter name.
        example: A real batch.
        absorb_bias: For methods that press on scales: whether what removed channels still give is
            folded into what follows. Without it their shifts are dropped.

    Raises:
        InvalidValue: If the channels that a method chose cannot be removed.
        NoMatch: If the model has no units that can be found.
    """
    if not isinstance(method, SparseScales):
        return _without_dead_units(model, mask, example)
    # Tied channels go where all of their normalisations agree, so that no others are lost.
    smaller, index_map = prune_channels(
        model, mask, absorb_bias=absorb_bias, example_input=example, tie="intersection"
    )
    if all(bool(keep.all()) for keep in index_map.keep.values()):
        return None
    note = (
        "what removed channels still gave is folded into the layers that read them, exactly but "
        "for the borders of pictures"
        if absorb_bias
        else "the shifts of removed channels are dropped, as in the paper"
    )
    return _form(model, smaller, index_map, mask, example, note)


@dataclass(frozen=True)
class DeadUnits:
    """Units of a group that need not be there: bool (size,) each.

    Args:
        unread: All that reads them is zero.
        silent: All that makes them is zero, biases and shifts included.
        constant: Their incoming matrices are zero; silent ones are among them.
    """

    unread: Tensor
    silent: Tensor
    constant: Tensor


def dead_units(model: nn.Module, groups: Sequence[UnitGroup]) -> dict[str, DeadUnits]:
    """Returns, by group, the units that need not be there.

    Args:
        model: It is only read.
        groups: From `find_units`.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> with torch.no_grad():
        ...     _ = net[0].weight[:2].zero_(), net[0].bias[0].zero_()
        >>> dead = dead_units(net, find_units(net))["0"]
        >>> dead.silent.tolist(), dead.constant.tolist()
        ([True, False, False], [True, True, False])
    """
    parameters = dict(model.named_parameters())
    found = {}
    for group in groups:
        owned = [each for each in group.slices if each.parameter in parameters]
        zero = {each: _zero(parameters[each.parameter], each, group.size) for each in owned}
        incoming = [each for each in owned if not each.outgoing]
        matrices = [zero[each] for each in incoming if parameters[each.parameter].dim() > 1]
        found[group.name] = DeadUnits(
            unread=_all([zero[each] for each in owned if each.outgoing], group.size),
            silent=_all([zero[each] for each in incoming] if matrices else [], group.size),
            constant=_all(matrices, group.size),
        )
    return found


def difference(model: nn.Module, other: nn.Module, example: Batch) -> float:
    """Returns the largest difference of their outputs, relative to the model's largest one."""
    with torch.no_grad(), evaluating(model), evaluating(other):
        pairs = zip(tensors_in(run(model, example)), tensors_in(run(other, example)), strict=True)
        return max(
            float((one - two).abs().max() / one.abs().max().clamp(min=1e-12)) for one, two in pairs
        )


def _without_dead_units(model: nn.Module, mask: Mask, example: Batch) -> CompactForm | None:
    """Returns the form without as many dead units as can go and change nothing.

    What is zero may still give something, as sigmoid(0) does: then it is a constant, to be folded
    into its readers, and where they cannot take it, it stays.
    """
    groups = find_units(model, example)
    dead = dead_units(model, groups)
    unread = {name: each.unread for name, each in dead.items()}
    without_constants = {name: each.unread | each.silent for name, each in dead.items()}
    with_constants = {name: each.unread | each.constant for name, each in dead.items()}
    constants = {g: dead[g.name].constant & ~dead[g.name].unread for g in groups}
    attempts = [(with_constants, constants), (without_constants, None), (unread, None)]
    if all(torch.equal(each.silent, each.constant) for each in dead.values()):
        attempts.insert(0, (without_constants, None))
    for gone, folded in attempts:
        found = _removed(model, gone, mask, example, groups, folded)
        if found is not None:
            return found
    return None


def _removed(
    model: nn.Module,
    gone: Mapping[str, Tensor],
    mask: Mask,
    example: Batch,
    groups: Sequence[UnitGroup],
    constants: Mapping[UnitGroup, Tensor] | None = None,
) -> CompactForm | None:
    """Returns the form without these units, or None where there are none or it is another."""
    keep = {name: _some_left(~units) for name, units in gone.items() if bool(units.any())}
    if all(bool(each.all()) for each in keep.values()):
        return None
    try:
        source = model
        if constants is not None:
            source = copy.deepcopy(model)
            absorb_constants(source, constants, example)
        smaller, index_map = compact(source, keep, groups=groups)
    except InvalidValue:
        return None
    found = _form(model, smaller, index_map, mask, example)
    return found if found.difference <= TOLERANCE else None


def _form(
    model: nn.Module,
    smaller: nn.Module,
    index_map: IndexMap,
    mask: Mask,
    example: Batch,
    note: str = "",
) -> CompactForm:
    return CompactForm(
        model=smaller.eval(),
        mask=Mask(_selected(mask, index_map)),
        keep=index_map.keep,
        plain=index_map.report.plain,
        difference=difference(model, smaller, example),
        note=note,
    )


def _selected(mask: Mask, index_map: IndexMap) -> dict[str, Tensor]:
    """Returns the masks of the entries that are left, without those that keep everything."""
    left = {}
    for name, keep in mask.items():
        for dim, index in index_map.get(name, {}).items():
            keep = keep.index_select(dim, index.to(keep.device))
        if not bool(keep.all()):
            left[name] = keep
    return left


def _zero(parameter: Tensor, each: UnitSlice, units: int) -> Tensor:
    """Returns which units have only zeros in a slice: bool (units,)."""
    rows = parameter.detach().movedim(each.dim, 0).reshape(parameter.shape[each.dim], -1)
    entries = (rows == 0).all(1).cpu()
    return entries[each.indices(torch.arange(units))].view(units, each.width).all(1)


def _all(flags: Sequence[Tensor], size: int) -> Tensor:
    """Returns where all hold; nowhere if there are none."""
    return torch.stack(list(flags)).all(0) if flags else torch.zeros(size, dtype=torch.bool)


def _some_left(keep: Tensor) -> Tensor:
    """Returns the units to keep, one of them where none would be left: something must pass."""
    if not bool(keep.any()):
        keep = keep.clone()
        keep[0] = True
    return keep
