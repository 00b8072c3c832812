"""Least squares after removing units: what reads the remaining ones makes up for those that went.

A layer with weight W read all units X; with the kept columns X_k the best weight is
argmin |X W^T - X_k V^T|^2, so V = W H[:, k] H[k, k]^-1 with H = X^T X. The bias counts as a column
that always reads 1 and is always kept. One pass over calibration text through the dense model gives
the H of every such layer.

Reference:
    He et al., 2017, arXiv 1707.06168, section 3.1, the reconstruction step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecraft.core.errors import MissingStatistic
from sparsecraft.core.statistics import Hessian
from sparsecraft.model.blocks import is_conv1d, is_linear
from sparsecraft.model.units import evaluating, run

DAMPING = 0.01
"""Added to the diagonal, as a share of its mean, so that few tokens still give an answer."""


@torch.no_grad()
def refit(
    smaller: nn.Module,
    model: nn.Module,
    index_map: Mapping[str, Mapping[int, Tensor]],
    batches: Iterable[Mapping[str, Any]],
) -> list[str]:
    """Refits the linear layers that lost inputs, in place; convolutions keep what they have.

    Args:
        smaller: The model that `compact` returned.
        model: The one it was given.
        index_map: What it returned beside it.
        batches: Calibration inputs.

    Returns:
        The names of the layers that were refitted.

    Raises:
        MissingStatistic: If there is no batch.

    Example:
        >>> from sparsecraft.model.compaction import compact
        >>> mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> small, index_map = compact(mlp, {"0": torch.tensor([True, False] * 4)})
        >>> refit(small, mlp, index_map, [{"input": torch.rand(64, 4)}])
        ['2']
    """
    kept: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        axis = 0 if is_conv1d(module) else 1
        if is_linear(module) and axis in index_map.get(f"{name}.weight", {}):
            kept[name] = index_map[f"{name}.weight"][axis]
    sums = _hessians(model, list(kept), batches)
    for name, columns in kept.items():
        layer, target = model.get_submodule(name), smaller.get_submodule(name)
        rows = index_map[f"{name}.weight"].get(1 if is_conv1d(layer) else 0)
        biased = layer.bias is not None
        _write(target, _solve(_matrix(layer), sums[name], columns, biased=biased), rows)
    return list(kept)


def _matrix(layer: nn.Module) -> Tensor:
    """Returns float64 (outputs, inputs), and the bias as one more column where there is one."""
    weight: Tensor = layer.weight.detach().double()  # type: ignore[operator]
    weight = weight.T if is_conv1d(layer) else weight
    if layer.bias is None:
        return weight
    return torch.cat([weight, layer.bias.detach().double().unsqueeze(1)], 1)  # type: ignore[operator]


def _solve(matrix: Tensor, hessian: Tensor, columns: Tensor, *, biased: bool) -> Tensor:
    """Returns the (outputs, kept) matrix nearest in output to the full one."""
    hessian = hessian.double()
    chosen = columns.to(hessian.device)
    if biased:
        last = torch.tensor([hessian.shape[0] - 1], device=hessian.device)
        chosen = torch.cat([chosen, last])
    inner = hessian[chosen][:, chosen]
    inner = inner + DAMPING * inner.diagonal().mean() * torch.eye(len(chosen)).to(inner)
    return torch.linalg.solve(inner, hessian[chosen] @ matrix.T).T


def _write(layer: nn.Module, matrix: Tensor, rows: Tensor | None) -> None:
    if rows is not None:
        matrix = matrix[rows.to(matrix.device)]
    if layer.bias is not None:
        layer.bias.copy_(matrix[:, -1])  # type: ignore[operator]
        matrix = matrix[:, :-1]
    layer.weight.copy_(matrix.T if is_conv1d(layer) else matrix)  # type: ignore[operator]


def _hessians(
    model: nn.Module, names: Iterable[str], batches: Iterable[Mapping[str, Any]]
) -> dict[str, Tensor]:
    sums: dict[str, Hessian] = {}
    mask: list[Tensor | None] = [None]

    def observe(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        rows = args[0].reshape(-1, args[0].shape[-1]).float()
        if mask[0] is not None and mask[0].numel() == rows.shape[0]:
            rows = rows[mask[0].reshape(-1).bool().to(rows.device)]
        if module.bias is not None:
            rows = F.pad(rows, (0, 1), value=1.0)
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
    if handles and not sums:
        raise MissingStatistic("refitting needs at least one calibration batch; none was given")
    return {name: each.value for name, each in sums.items()}
