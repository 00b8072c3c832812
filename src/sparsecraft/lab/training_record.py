"""What is kept of one training: quality, sparsity, cost, and how the masks went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sparsecraft.core.kinds import InTraining
from sparsecraft.core.mask import Mask
from sparsecraft.lab.cost import (
    SIMULATED,
    MaskPath,
    TrainingFlops,
    churn,
    jaccard,
    mean_density,
    training_flops,
)
from sparsecraft.lab.forms import packed_size, plain_size
from sparsecraft.lab.measures.calibration import (
    expected_calibration_error,
    negative_log_likelihood,
)
from sparsecraft.lab.measures.per_class import worst_class_accuracy
from sparsecraft.lab.paths import effective_density
from sparsecraft.lab.tasks.base import SPLITS, Split, Task, evaluating
from sparsecraft.lab.tasks.vision import BATCH, ImageTask
from sparsecraft.lab.training import Trained, TrainSettings
from sparsecraft.model.flops import profile_flops
from sparsecraft.model.targets import find_targets


def record(
    task: Task, trained: Trained, settings: TrainSettings, full: nn.Module | None = None
) -> dict[str, Any]:
    """Returns everything that the report needs of one training, as plain values.

    Args:
        task: What it was trained on.
        trained: The finished training.
        settings: How it was trained.
        full: The wide model whose training is the measure of operations, where it is a narrower
            one that was trained.
    """
    report = trained.report
    return {
        **quality(task, trained.model),
        **_sparsity(trained),
        "flops": flops(trained, settings, full).to_json(),
        "runtime": "dense kernels" if report is None else SIMULATED,
        "trainings": _trainings(None if report is None else report.method, settings),
        "seconds": trained.seconds,
        "peak_bytes": trained.peak_bytes[0],
        "peak_is_own": trained.peak_bytes[1],
        "stored_bytes": trained.stored_bytes,
        "processes": trained.processes,
        "masks": None if report is None else mask_path(trained).to_json(),
        "losses": [list(point) for point in trained.losses],
        "densities": densities(trained, settings.steps),
        "form": "plain" if report is None else report.form,
        "notes": [] if report is None else list(report.notes),
    }


def quality(task: Task, model: nn.Module) -> dict[str, Any]:
    """Returns the metric on both parts; for image classifiers also NLL, ECE and the worst class."""
    scores = task.evaluate_both(model)
    found: dict[str, Any] = {split: scores[split].metric for split in SPLITS}
    found["extra"] = dict(scores["test"].extra)
    if isinstance(task, ImageTask):
        logits, labels = logits_on(task, model, "test")
        found["nll"] = negative_log_likelihood(logits, labels)
        found["ece"] = expected_calibration_error(logits, labels)
        found["worst_class"] = worst_class_accuracy(logits, labels)
    return found


def logits_on(task: ImageTask, model: nn.Module, split: Split) -> tuple[Tensor, Tensor]:
    """Returns (examples, classes) logits and (examples,) labels of one part."""
    images = task.images[split]
    with evaluating(model):
        parts = [
            task.outputs(model, images.batch(index)).float().cpu()
            for index in torch.arange(len(images)).split(BATCH)
        ]
    return torch.cat(parts), images.labels


def flops(
    trained: Trained, settings: TrainSettings, full: nn.Module | None = None
) -> TrainingFlops:
    """Returns the operations of the training, by the densities that its masks had."""
    report = trained.report
    passes = settings.accumulate * trained.processes
    profile = profile_flops(trained.model, _on(trained.model, trained.batch))
    if report is None:
        found = training_flops(profile, [], [], settings.steps, passes=passes)
        if full is None:
            return found
        wide = profile_flops(full, _on(full, trained.batch))
        return replace(found, dense=3.0 * passes * wide.total * settings.steps)
    return training_flops(
        profile,
        list(report.targets),
        report.history,
        report.steps[0],
        passes=passes,
        live=report.method.masked_weights == "live",
        teacher="teacher" in report.method.captures,
    )


def mask_path(trained: Trained) -> MaskPath:
    """Returns what the masks of a sparse training went through."""
    report = trained.report
    assert report is not None
    updates, changed = churn(report.history, report.targets.numel)
    return MaskPath(
        itop=report.itop,
        updates=updates,
        churn=changed,
        jaccard=jaccard(trained.first_mask, report.mask),
        effective_density=effective_density(
            trained.model, report.mask, report.targets, trained.batch
        )
        if report.form == "plain"
        else None,
    )


def densities(trained: Trained, steps: int) -> list[list[float]]:
    """Returns (step, density of the targeted weights) along the training, its end included."""
    report = trained.report
    if report is None:
        return [[0, 1.0], [steps, 1.0]]
    targets = list(report.targets)
    points = [[event.step, mean_density(targets, event.densities)] for event in report.history]
    points = points or [[0, 1.0]]
    return [*points, [steps, 1 - report.sparsity]]


def _sparsity(trained: Trained) -> dict[str, Any]:
    report, model = trained.report, trained.model
    parameters = list(model.parameters())
    total = sum(p.numel() for p in parameters)
    zeros = sum(int((p == 0).sum()) for p in parameters)
    targets = find_targets(model) if report is None else report.targets
    mask = Mask({}) if report is None else report.mask
    return {
        "asked": None if report is None else report.asked,
        "sparsity": 0.0 if report is None else report.sparsity,
        "zeros_of_all": zeros / total,
        "parameters": total,
        "kept": total - (mask.numel - mask.kept),
        "bytes": plain_size(model),
        "packed_bytes": packed_size(model, mask),
        "targeted": targets.numel,
        "left_out": [] if report is None else _left_out(report.targets.table()),
    }


def _left_out(table: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in table if not row["targeted"]]


def _trainings(method: InTraining | None, settings: TrainSettings) -> int:
    """Returns how many trainings stand behind the model, that of a start or a teacher included."""
    teacher = method is not None and "teacher" in method.captures
    return 1 + int(settings.start == "trained" or teacher)


def _on(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    return {name: tensor.to(device) for name, tensor in batch.items()}
