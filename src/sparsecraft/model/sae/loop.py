"""The steps of a training of autoencoders, with checkpoints, progress, and an end by Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sparsecraft.model.activation_store.reader import Reader
from sparsecraft.model.interrupts import hold_interrupts
from sparsecraft.model.ranks import any_rank, rank
from sparsecraft.model.sae import checkpoint
from sparsecraft.model.sae.trainer import Trainer

Progress = Callable[[str, int, int], None]


def take_steps(
    trainers: Sequence[Trainer],
    reader: Reader,
    folder: Path | None,
    identity: Mapping[str, str],
    spent: float,
    progress: Progress | None,
) -> float:
    """Takes the steps that are left; returns the seconds spent, with those of earlier sessions.

    Args:
        trainers: Begun, or taken up from a checkpoint.
        reader: Of the batches, where the trainers are.
        folder: Where checkpoints are kept, if anywhere.
        identity: What a checkpoint is of.
        spent: Seconds of earlier sessions.
        progress: Told (stage, steps done, steps).

    Raises:
        KeyboardInterrupt: After the step in which Ctrl-C was pressed, on every rank, once a
            checkpoint of that step is written. A second Ctrl-C does not wait.
    """
    plan, device = trainers[0].training, trainers[0].sae.W_dec.device
    begun = time.perf_counter()

    def keep() -> None:
        if folder is not None and rank() == 0:
            seconds = spent + time.perf_counter() - begun
            checkpoint.save(folder, trainers, reader, identity, seconds)

    with hold_interrupts() as held:
        for done in range(trainers[0].steps_done + 1, plan.steps + 1):
            batch = next(reader)
            for trainer in trainers:
                trainer.step(batch)
            due = done % plan.checkpoint_every == 0 or done == plan.steps
            if due:
                keep()
            if progress is not None:
                progress(_stage(trainers), done, plan.steps)
            if any_rank(held.pressed, device):
                if not due:
                    keep()
                raise KeyboardInterrupt
    return spent + time.perf_counter() - begun


def _stage(trainers: Sequence[Trainer]) -> str:
    """Returns what a progress bar says: the last recorded loss and L0 of the first."""
    history = trainers[0].history
    if not history:
        return "first steps"
    last = history[-1]
    return f"error {last['reconstruction']:.3g}, L0 {last['active']:.1f}, dead {last['dead']:.0%}"
