"""What a pruning will need, said before it starts: bytes beside the model, and seconds.

The bytes are counted: statistics of the largest block, the hidden states between two blocks, copies
of the largest matrix. The seconds are the multiplications of the forward passes and statistics at
the rate that one matrix product of the model's own size reaches here. What a method computes on
top, such as SparseGPT's repair, is not known from outside and not in it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsecraft.core.kinds import Layerwise, WeightMethod
from sparsecraft.core.statistics import Statistic
from sparsecraft.model.blocks import find_blocks
from sparsecraft.model.targets import Target, Targets

_FLOAT = 4
_BLOCKWISE_PASSES = 3  # one to record how the blocks are called, one with hooks, one pruned
_GRADIENT_PASSES = 3  # a backward pass costs about two forward ones


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a pruning needs beside the model itself.

    Args:
        statistics_bytes: Of the running sums of the largest block; at most, because layers that
            read one tensor share one sum.
        hidden_bytes: Of the calibration states between two blocks.
        work_bytes: Of float32 copies of matrices and their gradients.
        seconds: Of calibration, without what the method itself computes.
    """

    statistics_bytes: int
    hidden_bytes: int
    work_bytes: int
    seconds: float

    @property
    def bytes(self) -> int:
        """All of it."""
        return self.statistics_bytes + self.hidden_bytes + self.work_bytes


def estimate(model: nn.Module, targets: Targets, method: WeightMethod, tokens: int) -> Estimate:
    """Returns what pruning needs in memory and calibration in time.

    Args:
        model: The dense model.
        targets: What will be pruned.
        method: With its statistics.
        tokens: Calibration tokens, 0 for a method that looks at none.
    """
    wanted = method.statistics if isinstance(method, Layerwise) else ()
    blocks = _blocks(model)
    groups = _groups(targets, blocks)
    hidden = max((_width(model, name) for name in blocks), default=0) if wanted else 0
    largest = max(target.numel for target in targets)
    work = 3 * largest * _FLOAT
    if not isinstance(method, Layerwise):
        gradients = tokens > 0
        work = targets.numel * _FLOAT * (3 if gradients else 1)
        work += _model_bytes(model) if gradients else 0
    return Estimate(
        statistics_bytes=max((state_bytes(group, wanted) for group in groups), default=0),
        hidden_bytes=2 * tokens * hidden * _FLOAT,
        work_bytes=work,
        seconds=_operations(model, targets, method, tokens) / _rate(targets) if tokens else 0.0,
    )


def state_bytes(targets: Iterable[Target], wanted: Iterable[type[Statistic]]) -> int:
    """Returns the bytes of these statistics, one set for each module."""
    return sum(
        tensor.numel() * tensor.element_size()
        for features in _inputs(targets).values()
        for kind in wanted
        for tensor in _state(kind, features)
    )


def _inputs(targets: Iterable[Target]) -> dict[str, int]:
    """Returns the width of every distinct input: parts of one fused matrix read the same."""
    keys = {t: t.module if t.index is None else t.name for t in targets}
    return {key: target.matrix_shape[1] for target, key in keys.items()}


def _state(kind: type[Statistic], features: int) -> list[Tensor]:
    # On the meta device a statistic has shapes but no memory.
    return [v for v in vars(kind(features, "meta")).values() if isinstance(v, Tensor)]


def _blocks(model: nn.Module) -> dict[str, nn.Module]:
    return {
        f"{name}.{i}": block
        for name, blocks in find_blocks(model).items()
        for i, block in enumerate(blocks)
    }


def _groups(targets: Targets, blocks: Iterable[str]) -> list[list[Target]]:
    """Returns the targets whose statistics are held together."""
    found: dict[str, list[Target]] = {}
    for target in targets:
        inside = (name for name in blocks if target.parameter.startswith(f"{name}."))
        found.setdefault(next(inside, target.module), []).append(target)
    return list(found.values())


def _width(model: nn.Module, block: str) -> int:
    """Returns the width of a block's input: that of its first matrix."""
    for module in model.get_submodule(block).modules():
        if isinstance(module, nn.Linear):
            return module.in_features
    return max(parameter.shape[0] for parameter in model.get_submodule(block).parameters())


def _operations(model: nn.Module, targets: Targets, method: WeightMethod, tokens: int) -> float:
    """Returns the floating-point operations of the forward passes and the statistics."""
    matrices = sum(p.numel() for p in model.parameters() if p.dim() >= 2)
    embeddings = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Embedding))
    forward = 2.0 * tokens * max(matrices - embeddings, targets.numel)
    if not isinstance(method, Layerwise):
        return _GRADIENT_PASSES * forward
    passes = _BLOCKWISE_PASSES if find_blocks(model) else len({t.module for t in targets})
    # Every token adds once to every number of a running sum.
    numbers = sum(
        tensor.numel()
        for features in _inputs(targets).values()
        for kind in method.statistics
        for tensor in _state(kind, features)
    )
    return passes * forward + 2.0 * tokens * numbers


def _rate(targets: Targets) -> float:
    """Returns the operations a second of a product with a matrix of the model's typical size."""
    by_size = sorted(targets, key=lambda target: target.numel)
    outputs, inputs = by_size[len(by_size) // 2].matrix_shape
    weight, x = torch.zeros(outputs, inputs), torch.zeros(256, inputs)
    x @ weight.T
    begin, rounds = time.perf_counter(), 0
    while time.perf_counter() - begin < 0.02:
        x @ weight.T
        rounds += 1
    return rounds * 2.0 * x.numel() * outputs / (time.perf_counter() - begin)


def _model_bytes(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())
