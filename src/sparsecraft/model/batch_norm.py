"""Gathers the running statistics of batch normalisation anew, for weights that were not trained.

The statistics of an average of models are not the average of their statistics: Zimmer et al. reset
them and pass a part of the training data once. The official code puts the whole model into training
mode; here only the normalisations are, so that dropout disturbs nothing, and by default every batch
counts the same instead of the last ones most.

Reference:
    Zimmer et al., 2023, arXiv 2306.16788, section 2; Izmailov et al., 2018, arXiv 1803.05407.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparsecraft.core.errors import InvalidValue, MissingStatistic
from sparsecraft.model.units import run


def has_batch_norm(model: nn.Module) -> bool:
    """Returns whether the model keeps running statistics."""
    return any(True for _ in _normalisations(model))


@torch.no_grad()
def recalibrate(
    model: nn.Module, batches: Collection[Any], fraction: float = 1.0, cumulative: bool = True
) -> int:
    """Gathers all running statistics anew, in place; returns how many batches were used.

    Args:
        model: Its weights stay as they are, and so does its mode.
        batches: Inputs, always in the same order: tensors, tuples of arguments or mappings of
            keywords. A list or a loader with a length.
        fraction: Which part of them is used, from the first on, rounded up. With 0 the statistics
            stay as they are.
        cumulative: Whether every batch counts the same. Otherwise each layer's own momentum rules.

    Raises:
        InvalidValue: If the fraction is not in [0, 1].
        MissingStatistic: If there is no batch.

    Example:
        >>> norm = nn.BatchNorm1d(1)
        >>> recalibrate(norm, [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [7.0]])])
        2
        >>> norm.running_mean, norm.running_var
        (tensor([4.]), tensor([2.]))
    """
    if not 0 <= fraction <= 1:
        raise InvalidValue(
            f"fraction={fraction!r} is not allowed: it is the part of the batches that is used, in "
            "[0, 1]"
        )
    if not len(batches):
        raise MissingStatistic(
            "no batch was given to gather the statistics of batch normalisation from. Give some of "
            "the training data."
        )
    used = math.ceil(round(fraction * len(batches), 6))
    if used:
        _gather(model, islice(batches, used), cumulative)
    return used


def _gather(model: nn.Module, batches: Iterable[Any], cumulative: bool) -> None:
    with _gathering(model, cumulative):
        for batch in batches:
            run(model, batch)


@contextmanager
def _gathering(model: nn.Module, cumulative: bool) -> Iterator[None]:
    """Puts the normalisations into training mode with empty statistics, all else in evaluation."""
    modes = {module: module.training for module in model.modules()}
    norms = list(_normalisations(model))
    momenta = {norm: norm.momentum for norm in norms}
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
        if cumulative:
            norm.momentum = None
    try:
        yield
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        for module, training in modes.items():
            module.training = training


def _normalisations(model: nn.Module) -> Iterator[_BatchNorm]:
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            yield module
