"""One training loop for all tasks: a Sparsifier attached, one process or many, resumed bit by bit.

It runs on Hugging Face Accelerate, so that `accelerate launch` and `torchrun` take the same command
to several processes. Each process takes its own batches of the task's one stream. A checkpoint
holds model, optimiser, schedule, sparsifier, random states and the position in the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.kinds import InTraining
from sparsecraft.core.seeds import derive
from sparsecraft.lab.cost import PeakMemory
from sparsecraft.lab.tasks.base import Batch, Task, inputs_of
from sparsecraft.lab.tasks.training import seeded
from sparsecraft.lab.training_loop import Loop, Progress
from sparsecraft.model.targets import Select
from sparsecraft.model.training_report import TrainingReport

OptimizerName = Literal["sgd", "adamw", "adams"]
OPTIMIZERS: tuple[OptimizerName, ...] = get_args(OptimizerName)
Start = Literal["scratch", "trained"]
STARTS: tuple[Start, ...] = get_args(Start)
LEARNING_RATES = {"sgd": 0.05, "adamw": 2e-3, "adams": 2e-3}


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How a task's model is trained; the same for a method and for what it is compared with.

    Args:
        steps: Optimiser steps of the whole training.
        batch_size: Examples in a batch, in each process.
        accumulate: Batches in a step.
        learning_rate: At its peak, after 5 % of warm-up; it then falls by a cosine. None takes the
            optimiser's own: 0.05 for sgd, 0.002 for the others.
        optimizer: sgd (with Nesterov momentum 0.9), adamw or adams.
        weight_decay: On matrices only.
        clip: Largest norm of the gradient.
        start: "scratch" for fresh weights, "trained" for those of the task's dense model.
    """

    steps: int
    batch_size: int = 64
    accumulate: int = 1
    learning_rate: float | None = None
    optimizer: OptimizerName = "adamw"
    weight_decay: float = 0.0
    clip: float = 1.0
    start: Start = "scratch"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InvalidValue(f"{name}={value!r} is not allowed: give at least 1")
        for name in ("learning_rate", "clip"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InvalidValue(f"{name}={value!r} is not allowed: give a positive number")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise InvalidValue(
                f"weight_decay={self.weight_decay!r} is not allowed: give at least 0"
            )
        if self.optimizer not in OPTIMIZERS:
            raise UnknownName("optimiser", self.optimizer, OPTIMIZERS)
        if self.start not in STARTS:
            raise UnknownName("start", self.start, STARTS)

    @property
    def peak(self) -> float:
        """The learning rate at its peak."""
        given = self.learning_rate
        return LEARNING_RATES[self.optimizer] if given is None else given


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished training.

    Args:
        model: In evaluation mode; sparse, and finished by its method.
        report: Of the sparsifier; None for a dense training.
        first_mask: By parameter name, as it was before the first step; empty where it was dense.
        losses: (step, loss) pairs along the training.
        batch: The inputs of one batch as it was trained on.
        seconds: Of the training itself, also before an interruption.
        peak_bytes: The most memory held, and whether it is that of this training alone.
        stored_bytes: Weights, gradients, moments and masks at the end.
        processes: How many trained together.
    """

    model: nn.Module
    report: TrainingReport | None
    first_mask: dict[str, Tensor]
    losses: list[tuple[int, float]]
    batch: Batch
    seconds: float
    peak_bytes: tuple[int, bool]
    stored_bytes: int
    processes: int


def starting_model(task: Task, start: Start, seed: int) -> nn.Module:
    """Returns the model that a training begins with.

    Args:
        task: The task.
        start: "scratch" or "trained".
        seed: Of fresh weights.

    Raises:
        InvalidValue: If the task has no fresh model to give.
    """
    if start == "trained":
        return task.load_model()
    build = getattr(task, "build", None)
    if build is None:
        raise InvalidValue(
            f"the task {task.name} has no untrained model to begin with: train on from its dense "
            'model (--from-trained, start="trained")'
        )
    return seeded(build, seed)


def make_optimizer(model: nn.Module, settings: TrainSettings) -> Optimizer:
    """Returns the optimiser, with weight decay on matrices only."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.peak, momentum=0.9, nesterov=True)
    if settings.optimizer == "adams":
        from sparsecraft.model.adams import AdamS

        return AdamS(groups, lr=settings.peak)
    return torch.optim.AdamW(groups, lr=settings.peak)


def train_task(
    task: Task,
    method: InTraining | None,
    settings: TrainSettings,
    *,
    seed: int = 0,
    targets: Select = None,
    model: nn.Module | None = None,
    checkpoint: Path | None = None,
    checkpoint_every: int = 500,
    progress: Progress | None = None,
) -> Trained:
    """Trains a task's model, sparse by a method or dense, and returns it finished.

    A checkpoint that lies at `checkpoint` is taken up, so that a killed training goes on where it
    stopped, bit by bit. It stays when the training is over: whoever keeps the result removes it.

    Args:
        task: What to train on.
        method: Makes the model sparse; None trains it dense.
        settings: How long and how fast.
        seed: Of fresh weights, batches and masks.
        targets: Which layers; see `find_targets`.
        model: What to begin with in place of the task's model; it is trained itself.
        checkpoint: File of the training's state; None keeps none.
        checkpoint_every: Steps from one checkpoint to the next.
        progress: Told of every step.

    Raises:
        SparsityError: If the method refuses the model or the optimiser, before any step.
        NonFinite: If the loss becomes NaN or infinite; the state before that step is kept.
        CheckpointError: If the checkpoint is of another training.
    """
    if checkpoint_every < 1:
        raise InvalidValue(f"checkpoint_every={checkpoint_every} is not allowed: give at least 1")
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(derive(seed, "training") % 2**63)
        if model is None:
            model = starting_model(task, settings.start, seed)
        loop = Loop(
            task,
            model,
            make_optimizer,
            method,
            settings,
            seed=seed,
            targets=targets,
            checkpoint=checkpoint,
        )
        with PeakMemory(loop.accelerator.device) as memory:
            loop.run(checkpoint_every, progress)
        stored = loop.stored_bytes()
        report = loop.finish()
    return Trained(
        model=(model if report is None else report.model).eval(),
        report=report,
        first_mask=loop.course.first_mask,
        losses=loop.course.losses,
        batch=inputs_of(next(task.training_batches(settings.batch_size, seed))),
        seconds=loop.course.seconds,
        peak_bytes=(memory.bytes, memory.exact),
        stored_bytes=stored,
        processes=loop.accelerator.num_processes,
    )
