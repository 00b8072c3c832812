"""What lies inside the wrappers that trainings put around models and optimisers."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from sparsecraft.core.errors import InvalidValue


def unwrapped(model: nn.Module) -> nn.Module:
    """Returns the module inside DDP, DataParallel and torch.compile."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(
            model, nn.parallel.DistributedDataParallel | nn.DataParallel
        ):
            inner = model.module
        if inner is None:
            return model
        model = inner


def unwrapped_optimizer(optimizer: Any) -> Optimizer:
    """Returns the torch optimiser inside Accelerate's.

    Raises:
        InvalidValue: If there is none.
    """
    inner = getattr(optimizer, "optimizer", None)
    optimizer = inner if isinstance(inner, Optimizer) else optimizer
    if not isinstance(optimizer, Optimizer):
        raise InvalidValue(
            f"attach() got a {type(optimizer).__name__}; give the torch optimiser of the model"
        )
    return optimizer
