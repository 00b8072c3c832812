"""Least squares after removing units: what reads the remaining ones makes up for those that went.

A layer with weight W read all units X; with the kept columns X_k the best weight is
argmin |X W^T - X_k V^T|^2, so V = W H[:, k] H[k, k]^-1 with H = X^T X. One pass over calibration
text gives H of every reading layer of the dense model.

Reference:
    He et al., 2017, arXiv 1707.06168, section 3.1, the reconstruction step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import MissingStatistic
from sparsecraft.core.statistics import Hessian
from sparsecraft.model.blocks import is_conv1d
from sparsecraft.model.units import Keep, UnitGroup, evaluating, run

DAMPING = 0.01
"""Added to the diagonal, as a share of its mean, so that few tokens still give an answer."""


@torch.no_grad()
def refit(
    smaller: nn.Module,
    model: nn.Module,
    keep: Keep,
    groups: Sequence[UnitGroup],
    batches: Iterable[Mapping[str, Any]],
) -> list[str]:
    """Refits the weights of the smaller model that read the kept units, in place.

    Only linear layers that read one group are refitted; convolutions and layers that several
    groups share keep their selected weights.

    Args:
        smaller: What `compact(model, keep)` returned.
        model: The dense model.
        keep: Group name to bool (size,).
        groups: From `find_units(model)`.
        batches: Calibration inputs.

    Returns:
        The names of the parameters that were refitted.

    Raises:
        MissingStatistic: If there is no batch.
    """
    kept = _readers(model, keep, groups)
    sums = _hessians(model, list(kept), batches)
    old, new = dict(model.named_modules()), dict(smaller.named_modules())
    for name, index in kept.items():
        flipped = is_conv1d(old[name])
        weight = old[name].weight.detach().double()
        weight = weight.T if flipped else weight
        solved = _solve(weight, sums[name].double(), index.to(weight.device))
        target = new[name].weight
        target.copy_((solved.T if flipped else solved).to(target.dtype))
    return [f"{name}.weight" for name in kept]


def _readers(model: nn.Module, keep: Keep, groups: Sequence[UnitGroup]) -> dict[str, Tensor]:
    """Returns linear layer to the inputs it keeps, for layers that read exactly one group."""
    found: dict[str, list[Tensor]] = {}
    for group in groups:
        for each in group.slices:
            name = each.parameter.rpartition(".")[0]
            if each.outgoing and _is_matrix(model.get_submodule(name), each.dim):
                units = keep[group.name] if group.name in keep else torch.ones(group.size).bool()
                found.setdefault(name, []).append(each.indices(units.nonzero().flatten()))
    return {
        name: parts[0]
        for name, parts in found.items()
        if len(parts) == 1 and len(parts[0]) < _inputs(model.get_submodule(name))
    }


def _is_matrix(module: nn.Module, dim: int) -> bool:
    return (isinstance(module, nn.Linear) and dim == 1) or (is_conv1d(module) and dim == 0)


def _inputs(module: nn.Module) -> int:
    weight = module.weight
    return int(weight.shape[0] if is_conv1d(module) else weight.shape[1])  # type: ignore[index]


def _hessians(
    model: nn.Module, names: Sequence[str], batches: Iterable[Mapping[str, Any]]
) -> dict[str, Tensor]:
    sums: dict[str, Hessian] = {}
    mask: list[Tensor | None] = [None]

    def observe(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0]
        rows = x.reshape(-1, x.shape[-1])
        if mask[0] is not None and mask[0].numel() == rows.shape[0]:
            rows = rows[mask[0].reshape(-1).bool().to(rows.device)]
        if name not in sums:
            sums[name] = Hessian(rows.shape[-1], rows.device)
        sums[name].observe(rows)

    handles = [
        model.get_submodule(name).register_forward_pre_hook(partial(observe, name))
        for name in names
    ]
    try:
        with evaluating(model):
            for batch in batches:
                mask[0] = batch.get("attention_mask")
                run(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    if names and not sums:
        raise MissingStatistic("refitting needs at least one calibration batch; none was given")
    return {name: each.value for name, each in sums.items()}


def _solve(weight: Tensor, hessian: Tensor, kept: Tensor) -> Tensor:
    """Returns (outputs, kept) weights nearest in output to the full ones."""
    inner = hessian[kept][:, kept]
    inner = inner + DAMPING * inner.diagonal().mean() * torch.eye(len(kept)).to(inner)
    return torch.linalg.solve(inner, hessian[kept] @ weight.T).T
