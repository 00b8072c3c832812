"""Trainings of autoencoders from beginning to end: one, or several on one stream of activations."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue, MissingStatistic
from sparsecraft.core.fidelity import ReconstructionSums
from sparsecraft.core.kinds import Selecting
from sparsecraft.model.activation_store import ActivationStore
from sparsecraft.model.digests import digest
from sparsecraft.model.ranks import check_agreement, mean_over_ranks_, rank, world_size
from sparsecraft.model.sae import checkpoint
from sparsecraft.model.sae.checks import check_targets
from sparsecraft.model.sae.estimator import ROWS_AT_ONCE
from sparsecraft.model.sae.formats.ours import check_writable
from sparsecraft.model.sae.loop import Progress, take_steps
from sparsecraft.model.sae.report import SAEReport
from sparsecraft.model.sae.row_scaling import RowScaling
from sparsecraft.model.sae.trainer import Trainer
from sparsecraft.model.sae.training_settings import SAETraining

if TYPE_CHECKING:
    from sparsecraft.model.sae.autoencoder import SparseAutoencoder

_SHARED = ("steps", "batch", "held_out", "checkpoint_every", "seed")
_MEASURED = 65_536


def as_store(data: ActivationStore | Tensor | np.ndarray[Any, Any]) -> ActivationStore:
    """Returns a store of activations (rows, d_in), or the store that was given.

    Raises:
        InvalidValue: If it is neither a store nor floating rows.
    """
    if isinstance(data, ActivationStore):
        return data
    if not isinstance(data, Tensor | np.ndarray):
        raise InvalidValue(
            f"a {type(data).__name__} cannot be trained on: give an ActivationStore, or "
            "activations (rows, d_in) as a tensor or NumPy array"
        )
    return ActivationStore.from_tensor(torch.as_tensor(data))


def train_together(
    saes: Sequence[SparseAutoencoder],
    data: ActivationStore | Tensor | np.ndarray[Any, Any],
    trainings: SAETraining | Sequence[SAETraining],
    directory: str | Path | None = None,
    progress: Progress | None = None,
) -> list[SparseAutoencoder]:
    """Returns autoencoders that were trained in place, each batch being read once for all of them.

    What becomes of one does not depend on the others.

    Args:
        saes: Of any sizes and activations.
        data: A store, or activations (rows, d_in).
        trainings: One for all, or one for each; steps, batch, held_out, checkpoint_every and seed
            must be the same.
        directory: Where checkpoints are kept; see `SparseAutoencoder.fit`.
        progress: Told (stage, steps done, steps).

    Raises:
        InvalidValue: If settings contradict each other or the data.
        NonFinite: For NaN or infinite activations, or a training that diverges.
        CheckpointError: If the directory has a training with other settings.

    Example:
        >>> from sparsecraft.methods.codes.topk import TopK
        >>> from sparsecraft.model.sae import SparseAutoencoder
        >>> x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
        >>> pair = [SparseAutoencoder(8, 16, TopK(k=k)) for k in (2, 4)]
        >>> [sae.report.steps for sae in train_together(pair, x, SAETraining(steps=2, batch=32))]
        [2, 2]
    """
    store = as_store(data)
    plans = _plans(saes, trainings)
    folder = None if directory is None else Path(directory)
    _check(saes, store, plans)
    if folder is not None:
        for sae in saes:
            check_writable(sae)
    plan = plans[0]
    rows, held_out = store.split(plan.held_out, plan.seed) if plan.held_out else (store, None)
    trainers = [Trainer(sae, each) for sae, each in zip(saes, plans, strict=True)]
    reader = rows.reader(plan.batch // world_size(), plan.seed, rank(), world_size())
    identity = _identity(trainers, store)
    if world_size() > 1:
        weights = {
            f"weights of {n}": digest(sae.state_dict().items()) for n, sae in enumerate(saes)
        }
        check_agreement({**identity, **weights})
    before = None if folder is None else checkpoint.load(folder, trainers, reader, identity)
    first = trainers[0].steps_done
    try:
        if before is None:
            for trainer in trainers:
                trainer.begin(rows)
        spent = take_steps(trainers, reader, folder, identity, before or 0.0, progress)
    finally:  # what a training that was stopped leaves reads raw activations too
        for trainer in trainers:
            trainer.finish()
    for trainer in trainers:
        trainer.sae.report = _report(trainer, rows, held_out, spent, first)
        trainer.sae.info.update(store.info, training=_summary(trainer))
    return list(saes)


def _report(
    trainer: Trainer,
    rows: ActivationStore,
    held_out: ActivationStore | None,
    seconds: float,
    first: int,
) -> SAEReport:
    notes = _set_thresholds(trainer, rows)
    sample = (held_out or rows).sample(min(len(held_out or rows), _MEASURED), 0)
    fvu, l0 = measure(trainer.sae, sample)
    training = trainer.training
    for record in trainer.history if world_size() > 1 else ():
        values = torch.tensor(list(record.values()), dtype=torch.float64)
        mean_over_ranks_([values])
        record.update(zip(record, values.tolist(), strict=True))
    return SAEReport(
        steps=training.steps,
        tokens=training.steps * training.batch,
        seconds=seconds,
        fvu=fvu,
        l0=l0,
        dead=float(trainer.dead().double().mean()),
        dead_after=training.silence(),
        measured_rows=len(sample),
        measured_on="training rows" if held_out is None else "held-out rows",
        learning_rate=training.peak(trainer.sae.d_sae),
        scale=trainer.scaling.inputs,
        target_scale=trainer.scaling.targets,
        history=trainer.history,
        resumed_from=first,
        world=world_size(),
        notes=notes,
    )


def _summary(trainer: Trainer) -> dict[str, Any]:
    """Returns what is kept in the file of the autoencoder: how it was trained, what came out."""
    settings = {
        field.name: getattr(trainer.training, field.name)
        for field in dataclasses.fields(trainer.training)
    }
    plain = {
        k: v if isinstance(v, str | int | float | None) else repr(v) for k, v in settings.items()
    }
    report = cast(SAEReport, trainer.sae.report).to_json()
    return {**plain, **{k: v for k, v in report.items() if k not in ("history", "resumed_from")}}


def _set_thresholds(trainer: Trainer, rows: ActivationStore) -> list[str]:
    """Sets the thresholds of batch-level codes; returns what to say about it."""
    activation, sae, training = trainer.sae.activation, trainer.sae, trainer.training
    if not isinstance(activation, Selecting):
        return []
    threshold = activation.inference_threshold(sae.own)
    if threshold is None:
        return []
    unset = bool(torch.isnan(threshold).any())
    count = training.threshold_rows or (training.batch if unset else 0)
    if not count:
        return ["thresholds are the running ones of the training"]
    sae.freeze_thresholds(rows, rows=count)
    return [f"thresholds were set on {min(count, len(rows)):,} training rows"]


@torch.no_grad()
def measure(sae: SparseAutoencoder, batch: Any) -> tuple[float, float]:
    """Returns (FVU, L0) on a batch of raw activations, each row by itself.

    Args:
        sae: In evaluation mode, reading raw activations.
        batch: With x, and gradient and target where the autoencoder wants them.
    """
    sums, entries = ReconstructionSums(), 0
    for part in torch.arange(len(batch.x)).split(ROWS_AT_ONCE):
        x = sae.check_input(batch.x[part].to(sae.W_dec.device))
        scaling = RowScaling.of(x, sae.row_norm)
        inner = scaling.apply(x)
        slope = None if batch.gradient is None else scaling.gradient(batch.gradient[part].to(x))
        z = sae.code_of(inner, gradient=slope)
        target = x if batch.target is None else batch.target[part].to(x)
        sums.add(target, scaling.undo(sae.reconstruct(z, inner)))
        entries += int(((z if isinstance(z, Tensor) else z.values) != 0).sum())
    return sums.fvu, entries / len(batch.x)


def _plans(
    saes: Sequence[SparseAutoencoder], trainings: SAETraining | Sequence[SAETraining]
) -> list[SAETraining]:
    plans = [trainings] * len(saes) if isinstance(trainings, SAETraining) else list(trainings)
    if not saes or len(plans) != len(saes):
        raise InvalidValue(
            f"{len(plans)} trainings for {len(saes)} autoencoders: give one for all, or one each"
        )
    if len({id(sae) for sae in saes}) != len(saes):
        raise InvalidValue("one autoencoder was given twice: give a deepcopy of it")
    for name in _SHARED:
        values = {getattr(plan, name) for plan in plans}
        if len(values) > 1:
            raise InvalidValue(
                f"trainings on one stream must have the same {name}, and these have "
                f"{sorted(values)}"
            )
    return plans


def _check(
    saes: Sequence[SparseAutoencoder], store: ActivationStore, plans: Sequence[SAETraining]
) -> None:
    """Raises before the first step what would fail in it."""
    if torch.is_inference_mode_enabled():
        raise InvalidValue(
            "in torch.inference_mode() there are no gradients to train by: call fit outside of it"
        )
    if plans[0].batch % world_size():
        raise InvalidValue(
            f"batch={plans[0].batch} cannot be divided between {world_size()} processes: give a "
            "multiple of it"
        )
    for sae, plan in zip(saes, plans, strict=True):
        if sae.d_in != store.d_in or sae.d_out != store.d_out:
            raise InvalidValue(
                f"this autoencoder reads {sae.d_in} entries and reconstructs {sae.d_out}; the "
                f"store has {store.d_in} and {store.d_out}"
            )
        check_targets(sae, store.has_target)
        if sae.transcoder and plan.decoder == "unit" and not bool(sae.W_dec.any()):
            raise InvalidValue(
                "decoder='unit' keeps rows of the decoder at norm one, and a transcoder begins "
                "with zeros: leave decoder at 'auto', or give 'free'"
            )
        if sae.activation.needs_gradient and not store.has_gradient:
            raise MissingStatistic(
                f"{type(sae.activation).__name__} selects by the gradient of the model's loss, "
                "and this store has none: harvest it with gradients=True"
            )


def _identity(trainers: Sequence[Trainer], store: ActivationStore) -> dict[str, str]:
    """Returns what must be the same for a training to go on, by name."""
    facts = {"store": str(store.digest), "processes": str(world_size())}
    for number, trainer in enumerate(trainers):
        sae = trainer.sae
        of = "" if len(trainers) == 1 else f" {number}"
        facts[f"activation{of}"] = repr(sae.activation)
        for name in (
            "d_in", "d_sae", "d_out", "row_norm", "unroll", "tied", "prefixes", "subtract_bias",
            "transcoder",
        ):  # fmt: skip
            facts[f"{name}{of}"] = repr(getattr(sae, name))
        facts[f"skip{of}"] = repr(sae.W_skip is not None)
        for field in dataclasses.fields(trainer.training):
            facts[f"{field.name}{of}"] = repr(getattr(trainer.training, field.name))
    return facts
