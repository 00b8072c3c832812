"""How the dense models of the trained tasks are made: seeded, AdamW, warm-up and cosine."""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import NonFinite
from sparsecraft.core.seeds import derive
from sparsecraft.lab.tasks.base import Batch
from sparsecraft.model.files import write_atomic

log = logging.getLogger(__name__)
Model = TypeVar("Model", bound=nn.Module)
SAVE_EVERY = 100


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How long and how fast to train.

    Args:
        steps: Optimiser steps.
        batch_size: Examples a step.
        learning_rate: At its peak, after the warm-up.
        weight_decay: Of AdamW, on matrices only.
        seed: Of the initial weights and of the batches.
    """

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.05
    seed: int = 0


def seeded(build: Callable[[], Model], seed: int) -> Model:
    """Returns what `build` makes under this seed; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "initial weights") % 2**63)
        return build()


def fit(
    model: Model,
    batches: Iterator[Batch],
    loss: Callable[[nn.Module, Batch], Tensor],
    settings: Fit,
    name: str,
    resume_from: Path | None = None,
) -> Model:
    """Trains the model in place and returns it in evaluation mode.

    Args:
        model: What to train.
        batches: Endless.
        loss: Of a model on a batch.
        settings: How long and how fast.
        name: For the log.
        resume_from: A file that keeps where the training stands, every `SAVE_EVERY` steps; one
            that is there already is gone on from. The caller removes it when the model is safe.

    Raises:
        NonFinite: If the loss becomes NaN or infinite.
    """
    log.info("%s: training the dense model once, %d steps", name, settings.steps)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, settings.steps))
    model.train()
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    begin = _resume(resume_from, parts, batches)
    for step in range(begin, settings.steps):
        value = loss(model, next(batches))
        if not torch.isfinite(value):
            raise NonFinite(f"{name}: the training loss is {value.item()} at step {step}.")
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            log.info("%s: step %d of %d, loss %.3f", name, step, settings.steps, value.item())
        if resume_from is not None and (step + 1) % SAVE_EVERY == 0:
            _keep(resume_from, parts, step + 1)
    return model.eval()


def _keep(path: Path, parts: Mapping[str, Any], step: int) -> None:
    buffer = io.BytesIO()
    torch.save({"step": step, **{name: part.state_dict() for name, part in parts.items()}}, buffer)
    write_atomic(path, buffer.getvalue())


def _resume(path: Path | None, parts: Mapping[str, Any], batches: Iterator[Batch]) -> int:
    """Puts model, optimiser, schedule and batches where the file says; returns the steps done."""
    if path is None or not path.is_file():
        return 0
    kept = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(kept[name])
    for _ in range(kept["step"]):
        next(batches)
    return int(kept["step"])


def rate(step: int, steps: int) -> float:
    """Returns the share of the peak learning rate: linear to 1 over 5 %, then cosine to 0.05.

    Example:
        >>> [round(rate(step, 100), 2) for step in (0, 4, 99)]
        [0.2, 1.0, 0.05]
    """
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))
