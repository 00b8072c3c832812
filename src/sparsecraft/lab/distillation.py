"""Distillation: a smaller model learns to give what the dense one gives, without labels.

The student matches the teacher's outputs, and after each block that both have its hidden states,
which is what a short training gains most from (TinyBERT). The time allowed is turned into a number
of steps before the first one, so that the learning rate has a plan and the same number of steps
gives the same student.

Reference:
    Hinton et al., 2015, arXiv 1503.02531; Jiao et al., 2020, arXiv 1909.10351, eq. 8.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue, NonFinite
from sparsecraft.lab.tasks.base import Batch, Task
from sparsecraft.model.blocks import find_blocks

WARM_UP = 0.1
BATCH_SIZE = 32
PROBES = 6
"""Batches whose gradients are timed, and thrown away, to learn how long a step takes."""


@dataclass(frozen=True, kw_only=True)
class Distilled:
    """What a distillation did.

    Args:
        steps: How many there were.
        seconds: How long they took.
        examples: How many texts or images were seen.
        first_loss: Mean over the first tenth of the steps.
        last_loss: Mean over the last tenth.
    """

    steps: int
    seconds: float
    examples: int
    first_loss: float
    last_loss: float

    def to_json(self) -> dict[str, float]:
        """Returns it as plain values."""
        return asdict(self)


def steps_for(
    student: nn.Module,
    teacher: nn.Module,
    task: Task,
    *,
    seconds: float,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> int:
    """Returns how many steps fit into the time, measured here; the student stays as it is."""
    loss = _Matching(task, student, teacher)
    batches = list(islice(task.training_batches(batch_size, seed), PROBES))
    loss(batches[0]).backward()
    took = []
    for batch in batches[1:]:
        begin = time.perf_counter()
        loss(batch).backward()
        took.append(time.perf_counter() - begin)
    for parameter in student.parameters():
        parameter.grad = None
    each = statistics.median(took)
    return max(1, round(seconds / each))


def distil(
    student: nn.Module,
    teacher: nn.Module,
    task: Task,
    *,
    steps: int,
    batch_size: int = BATCH_SIZE,
    learning_rate: float = 1e-3,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Distilled:
    """Trains the student in place to match the teacher on the task's training text.

    Args:
        student: The smaller model.
        teacher: The dense one; it is only read.
        task: Gives the batches and the outputs that are matched.
        steps: Optimiser steps, at least 1.
        batch_size: Examples in a step.
        learning_rate: Peak of a schedule that rises over the first tenth and falls as a cosine.
        seed: Chooses the batches.
        progress: Called with (steps done, steps in all).

    Raises:
        InvalidValue: If there are no steps.
        NonFinite: If the loss diverges.
    """
    if steps < 1 or batch_size < 1:
        raise InvalidValue(f"steps={steps} and batch_size={batch_size} must both be at least 1")
    begin = time.perf_counter()
    optimiser = torch.optim.AdamW(student.parameters(), lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, steps))
    matching = _Matching(task, student, teacher)
    losses = []
    for step, batch in enumerate(islice(task.training_batches(batch_size, seed), steps)):
        loss = matching(batch)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise NonFinite(f"the loss of the distillation is {losses[-1]} at step {step}")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, steps)
    for parameter in student.parameters():
        parameter.grad = None
    tenth = max(1, steps // 10)
    return Distilled(
        steps=steps,
        seconds=time.perf_counter() - begin,
        examples=steps * batch_size,
        first_loss=sum(losses[:tenth]) / tenth,
        last_loss=sum(losses[-tenth:]) / tenth,
    )


def _rate(step: int, steps: int) -> float:
    """Returns the share of the peak learning rate at a step."""
    rising = max(1, round(WARM_UP * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


class _Matching:
    """The distance between student and teacher on a batch.

    Args:
        task: Its kind says how outputs are compared.
        student: Trained.
        teacher: Read.
    """

    def __init__(self, task: Task, student: nn.Module, teacher: nn.Module) -> None:
        self.task, self.student, self.teacher = task, student, teacher
        mine, theirs = _blocks(student), _blocks(teacher)
        self.blocks = (mine, theirs) if len(mine) == len(theirs) else ([], [])

    def __call__(self, batch: Batch) -> Tensor:
        """Returns the scalar loss."""
        with torch.no_grad(), _recorded(self.blocks[1]) as theirs:
            wanted = self.task.outputs(self.teacher, batch)
        with torch.enable_grad(), _recorded(self.blocks[0]) as mine:
            given = self.task.outputs(self.student, batch)
            loss = self._outputs(given, wanted)
            if mine:
                pairs = zip(mine, theirs, strict=True)
                loss = loss + sum(_distance(a, b, batch) for a, b in pairs) / len(mine)
        return loss

    def _outputs(self, given: Tensor, wanted: Tensor) -> Tensor:
        if self.task.kind == "embedding":
            return (1 - F.cosine_similarity(given, wanted, dim=-1)).mean()
        predicted = F.log_softmax(given.float().flatten(0, -2), dim=-1)
        target = F.log_softmax(wanted.float().flatten(0, -2), dim=-1)
        return F.kl_div(predicted, target, log_target=True, reduction="batchmean")


def _blocks(model: nn.Module) -> list[nn.Module]:
    return [block for blocks in find_blocks(model).values() for block in blocks]


def _distance(mine: Tensor, theirs: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Returns the squared distance of hidden states over the teacher's variance, unpadded."""
    mask = batch.get("attention_mask")
    if mask is not None and mask.shape == mine.shape[:2]:
        real = mask.to(mine.device).bool()
        mine, theirs = mine[real], theirs[real]
    return F.mse_loss(mine, theirs) / theirs.var().clamp_min(1e-8)


@contextmanager
def _recorded(blocks: list[nn.Module]) -> Iterator[list[Tensor]]:
    """Gives a list that a forward pass inside the block fills with each block's output."""
    found: list[Tensor] = []

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        found.append(output if isinstance(output, Tensor) else output[0])

    handles = [block.register_forward_hook(hook) for block in blocks]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
