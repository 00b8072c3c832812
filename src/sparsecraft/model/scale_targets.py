"""The scales of batch normalisations as targets: vectors (channels,), named after their layers."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparsecraft.core.errors import InvalidValue, NoMatch
from sparsecraft.model.channels import batch_norms
from sparsecraft.model.targets import Row, Select, Target, Targets, selector


def scale_targets(model: nn.Module, select: Select = None) -> Targets:
    """Returns the scales of the model's BatchNorm layers as targets, and the table of the rest.

    A frozen scale (`requires_grad=False`) is left out: no gradient could move it. A layer in
    evaluation mode is not: its statistics stand still, but its scale trains.

    Args:
        model: Any network.
        select: Which layers, as in `find_targets`; None takes all.

    Raises:
        InvalidValue: If no BatchNorm has a scale.
        NoMatch: If none is selected, or all are frozen.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
        >>> scale_targets(net).shapes
        {'1': (4,)}
    """
    norms = batch_norms(model)
    if not norms:
        _refuse(model)
    found = [
        Target(
            name=name or "weight",
            parameter=f"{name}.weight" if name else "weight",
            module=name,
            type=type(norm).__name__,
            shape=tuple(norm.weight.shape),
        )
        for name, norm in norms.items()
    ]
    accepts = selector(model, found, select)
    chosen, reasons = [], {}
    for target in found:
        taken, reason = (True, "scale of a BatchNorm") if select is None else accepts(target, ())
        if taken and not norms[target.module].weight.requires_grad:
            taken, reason = False, "frozen: its scale does not train"
        reasons[target.parameter] = reason
        if taken:
            chosen.append(target)
    if not chosen:
        raise NoMatch(
            f"no scale of a BatchNorm is left to press down: {sorted(set(reasons.values()))}. "
            "Select others (targets=...), or let their weights train."
        )
    names = {target.parameter for target in chosen}
    rows = [
        Row(
            name,
            tuple(parameter.shape),
            parameter.numel(),
            name in names,
            reasons.get(name, "not the scale of a BatchNorm"),
        )
        for name, parameter in model.named_parameters()
    ]
    return Targets(tuple(chosen), tuple(rows))


def _refuse(model: nn.Module) -> None:
    plain = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    if plain:
        raise InvalidValue(
            f"none of the {len(plain)} BatchNorm layers of {type(model).__name__} has a scale "
            f"(affine=False, such as {plain[0]!r}), and their scales are what is made sparse. "
            "Build them with affine=True."
        )
    raise NoMatch(
        f"{type(model).__name__} has no BatchNorm layer, whose scales are what is made sparse. "
        "Other normalisations share statistics between channels, which could not be removed."
    )
