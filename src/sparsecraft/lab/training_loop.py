"""The loop itself: steps, checkpoints, resuming, and the stop before a loss that is no number."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsecraft.core.errors import CheckpointError, InvalidValue, MissingDependency, NonFinite
from sparsecraft.core.kinds import InTraining
from sparsecraft.lab.cost import stored_bytes
from sparsecraft.lab.tasks.base import Batch, Task, to_device
from sparsecraft.lab.tasks.training import rate
from sparsecraft.model.ranks import any_rank
from sparsecraft.model.sparsifier import Sparsifier
from sparsecraft.model.targets import Select
from sparsecraft.model.training_checkpoints import load_training, save_training
from sparsecraft.model.training_report import TrainingReport

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState

    from sparsecraft.lab.training import TrainSettings

Progress = Callable[[int, int, float], None]
"""Called with (steps done, steps in all, loss)."""
CURVE = 200
"""About how many points of the loss are kept."""
FIRST_BATCHES = 4
"""How many training batches a first mask may look at, where it looks at data."""


@dataclass
class Course:
    """What changes while a training goes on, and is saved with it.

    Args:
        step: Optimiser steps done.
        seconds: Spent in steps.
        losses: (step, loss) pairs.
        first_mask: By parameter name, before the first step; empty where it was dense.
    """

    step: int = 0
    seconds: float = 0.0
    losses: list[tuple[int, float]] = field(default_factory=list)
    first_mask: dict[str, Tensor] = field(default_factory=dict)


class Dense:
    """Stands where a Sparsifier would, in the checkpoints of a dense training."""

    def __init__(self, model: nn.Module, identity: dict[str, Any]) -> None:
        self.model = model
        self.identity = identity

    def state_dict(self) -> dict[str, Any]:
        """Returns what must be equal for a checkpoint to fit."""
        return self.identity

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises CheckpointError if the state is of another training."""
        if state != self.identity:
            raise CheckpointError(
                "the checkpoint is not that of this dense training: another length, seed or method"
            )


def accelerator(accumulate: int = 1) -> Accelerator:
    """Returns Accelerate's view of devices and processes.

    Raises:
        MissingDependency: If Accelerate is not installed.
    """
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise MissingDependency("accelerate", "hf", "Training a task's model") from error
    return Accelerator(gradient_accumulation_steps=accumulate)


def processes() -> PartialState:
    """Returns which process this is, of how many; several are started by `accelerate launch`.

    Raises:
        MissingDependency: If Accelerate is not installed.
    """
    accelerator()
    from accelerate import PartialState

    return PartialState()


class Loop:
    """One training under way.

    Args:
        task: What to train on.
        model: What to train; it is moved to the process's device.
        make_optimizer: (model, settings) -> the optimiser of its parameters.
        method: Makes the model sparse; None trains it dense.
        settings: How long and how fast.
        seed: Of batches and masks.
        targets: Which layers.
        checkpoint: File of the training's state, taken up if it is there; None keeps none.
    """

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        make_optimizer: Callable[[nn.Module, TrainSettings], Optimizer],
        method: InTraining | None,
        settings: TrainSettings,
        *,
        seed: int,
        targets: Select,
        checkpoint: Path | None,
    ) -> None:
        self.task = task
        self.settings = settings
        self.seed = seed
        self.checkpoint = checkpoint
        self.course = Course()
        self.accelerator = accelerator(settings.accumulate)
        self._check_sharding()
        self.raw = model.to(self.accelerator.device).train()
        self.sparsifier = self._sparsifier(method, targets)
        self.model, self.optimizer = self.accelerator.prepare(
            self.raw, make_optimizer(self.raw, settings)
        )
        self.inner: Optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.inner, lambda step: rate(step, settings.steps)
        )
        if self.sparsifier is not None:
            self.course.first_mask = dict(self.sparsifier.mask)
            self.sparsifier.attach(self.inner)
        if checkpoint is not None and checkpoint.exists():
            self._resume(checkpoint)

    def run(self, checkpoint_every: int, progress: Progress | None = None) -> None:
        """Takes all steps that are left."""
        total = self.settings.steps
        batches = self._batches()
        while self.course.step < total:
            begin = time.perf_counter()
            loss = self._step(batches)
            self.course.step += 1
            self.course.seconds += time.perf_counter() - begin
            step = self.course.step
            if step in (1, total) or step % max(1, total // CURVE) == 0:
                self.course.losses.append((step, loss))
            if progress is not None:
                progress(step, total, loss)
            if step % checkpoint_every == 0 or step == total:
                self.save()

    def finish(self) -> TrainingReport | None:
        """Returns the report of the finalized sparsifier, None for a dense training."""
        return None if self.sparsifier is None else self.sparsifier.finalize()

    def stored_bytes(self) -> int:
        """Returns the bytes of weights, gradients, moments and masks."""
        masks = {} if self.sparsifier is None else dict(self.sparsifier.mask)
        return stored_bytes(self.raw, self.inner, masks)

    def save(self) -> None:
        """Writes the checkpoint, if there is one to write; one process does it for all."""
        if self.checkpoint is None:
            return
        extra = {
            **asdict(self.course),
            "processes": self.accelerator.num_processes,
            "random": self._random_states(),
        }
        if self.accelerator.is_main_process:
            save_training(self.checkpoint, self._host(), self.inner, self.schedule, extra)
        self.accelerator.wait_for_everyone()

    # -- a step ----------------------------------------------------------------------------------

    def _step(self, batches: Iterator[Batch]) -> float:
        """Takes one optimiser step and returns its mean loss in this process."""
        before = self._before_step()
        total = 0.0
        for _ in range(self.settings.accumulate):
            with self.accelerator.accumulate(self.model):
                loss = self.task.loss(self.model, next(batches))
                if self.sparsifier is not None:
                    loss = loss + self.sparsifier.loss()
                self._check(loss, "loss", before)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    norm = self.accelerator.clip_grad_norm_(
                        self.model.parameters(), self.settings.clip
                    )
                    self._check(norm, "gradient", before)
                self.optimizer.step()
                self.optimizer.zero_grad()
            total += loss.item()
        self.schedule.step()
        return total / self.settings.accumulate

    def _batches(self) -> Iterator[Batch]:
        """Yields this process's batches of the one stream, from where the training stands."""
        stream = self.task.training_batches(self.settings.batch_size, self.seed)
        world = self.accelerator.num_processes
        drawn = self.course.step * self.settings.accumulate * world
        return islice(stream, drawn + self.accelerator.process_index, None, world)

    def _before_step(self) -> tuple[list[Tensor], Tensor]:
        """Returns what a forward pass changes: the buffers of normalisations, the random state."""
        return [buffer.clone() for buffer in self.raw.buffers()], torch.get_rng_state()

    def _check(self, value: Any, what: str, before: tuple[list[Tensor], Tensor]) -> None:
        """Raises NonFinite on all processes where one of them has a value that is no number."""
        found = torch.as_tensor(value).detach()
        if not any_rank(not bool(torch.isfinite(found)), self.accelerator.device):
            return
        buffers, random = before
        with torch.no_grad():
            for buffer, old in zip(self.raw.buffers(), buffers, strict=True):
                buffer.copy_(old)
        torch.set_rng_state(random)
        self.optimizer.zero_grad()
        self.save()
        self._stop(float(found), what)

    def _stop(self, value: float, what: str) -> NoReturn:
        kept = "" if self.checkpoint is None else f" The state before it is in {self.checkpoint}."
        raise NonFinite(
            f"{self.task.name}: the {what} is {value} at step {self.course.step + 1} of "
            f"{self.settings.steps}.{kept} Try a smaller learning rate."
        )

    # -- the beginning ---------------------------------------------------------------------------

    def _sparsifier(self, method: InTraining | None, targets: Select) -> Sparsifier | None:
        if method is None:
            return None
        stream = self.task.training_batches(self.settings.batch_size, self.seed)
        first = [to_device(batch, self.raw) for batch in islice(stream, FIRST_BATCHES)]
        teacher = None
        if "teacher" in method.captures:
            teacher = self.task.load_model().to(self.accelerator.device)
        return Sparsifier(
            self.raw,
            method,
            total_steps=self.settings.steps,
            targets=targets,
            seed=self.seed,
            calibration=first,
            teacher=teacher,
        )

    def _host(self) -> Any:
        identity = {"method": "dense", "total_steps": self.settings.steps, "seed": self.seed}
        return self.sparsifier or Dense(self.raw, identity)

    def _resume(self, checkpoint: Path) -> None:
        extra = load_training(checkpoint, self._host(), self.inner, self.schedule)
        states, processes = extra.pop("random"), extra.pop("processes")
        if processes != self.accelerator.num_processes:
            raise CheckpointError(
                f"{checkpoint} is of a training in {processes} processes; go on with as many, "
                f"not {self.accelerator.num_processes}"
            )
        if states:
            torch.set_rng_state(states[self.accelerator.process_index])
        losses = [(int(step), float(loss)) for step, loss in extra.pop("losses")]
        self.course = Course(losses=losses, **extra)

    def _random_states(self) -> list[Tensor]:
        """Returns the random state of each process; none for a single one, which saves its own."""
        if self.accelerator.num_processes == 1:
            return []
        states: list[Any] = [None] * self.accelerator.num_processes
        torch.distributed.all_gather_object(states, torch.get_rng_state())
        return states

    def _check_sharding(self) -> None:
        if "FSDP" in str(self.accelerator.distributed_type) and self.checkpoint is not None:
            raise InvalidValue(
                "checkpoints of sharded trainings (FSDP) are not written here: these tasks' models "
                "fit on one device. Use several processes without sharding, or a Sparsifier in "
                "your own loop."
            )
