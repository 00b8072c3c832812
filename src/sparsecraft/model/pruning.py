"""Prunes a model with a method of the catalog: `prune(model, "wanda", sparsity=0.6)`.

The host of the kinds Layerwise and ModelWide: it finds the targets, shares the budget, gathers the
statistics, writes the weights back and says what it did to every parameter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sparsecraft.core import catalog
from sparsecraft.core.errors import InvalidValue, NonFinite
from sparsecraft.core.kinds import Layer, Layerwise, Method, ModelWide, Pruned, WeightMethod
from sparsecraft.core.mask import Mask
from sparsecraft.core.patterns import Unstructured
from sparsecraft.model.calibration import Stage, stages
from sparsecraft.model.context import CopyContext, LossFunction
from sparsecraft.model.targets import Select, Targets, find_targets

Batch = Mapping[str, Any]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class LayerReport:
    """What was asked of a layer and what it got."""

    name: str
    shape: tuple[int, ...]
    numel: int
    asked: float | None
    achieved: float

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values; densities are fractions kept."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "numel": self.numel,
            "asked": self.asked,
            "achieved": self.achieved,
        }


@dataclass(frozen=True)
class PruneReport:
    """The outcome of a pruning.

    Args:
        method: The method as it was used.
        mask: What was kept, by parameter name.
        rows: One line for each target, with asked and achieved density.
        targets: The targets and the table of all parameters.
        seconds: Wall time.
        notes: Everything that did not go as asked, in plain words; empty if all did.
    """

    method: WeightMethod
    mask: Mask
    rows: tuple[LayerReport, ...]
    targets: Targets
    seconds: float
    seed: int
    calibration_tokens: int = 0
    notes: tuple[str, ...] = field(default=())

    @property
    def asked(self) -> float:
        """Sparsity asked of the targets together."""
        return 1.0 - self.method.density

    @property
    def sparsity(self) -> float:
        """Sparsity achieved over the targeted weights."""
        kept = sum(row.achieved * row.numel for row in self.rows)
        return 1.0 - kept / sum(row.numel for row in self.rows)

    @property
    def skipped(self) -> list[dict[str, object]]:
        """The parameters that were not targeted, with the reason."""
        return [row for row in self.targets.table() if not row["targeted"]]

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values, without the mask."""
        return {
            "method": catalog.describe(self.method),
            "seed": self.seed,
            "asked": self.asked,
            "sparsity": self.sparsity,
            "layers": [row.to_json() for row in self.rows],
            "parameters": self.targets.table(),
            "calibration_tokens": self.calibration_tokens,
            "seconds": self.seconds,
            "notes": list(self.notes),
        }


def prune(
    model: nn.Module,
    method: str | Method = "magnitude",
    *,
    targets: Select = None,
    calibration: Sequence[Batch] | None = None,
    max_tokens: int | None = None,
    seed: int = 0,
    loss_function: LossFunction | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> PruneReport:
    """Prunes a model in place and returns what was done.

    Args:
        model: Any torch module; Hugging Face models in particular.
        method: Name in the catalog, "file.py:Class", or a method that is built already.
        targets: Which layers; see `find_targets`. By default the matrices of the blocks.
        calibration: Batches of forward arguments, for methods that look at activations or
            gradients.
        max_tokens: How many calibration tokens are used at most.
        seed: Of everything random.
        loss_function: (output, batch, temperature) -> scalar, for gradient methods on models whose
            loss is not the cross-entropy of their logits.
        progress: Called with (stage, done, total).
        options: Settings of the method, for example sparsity=0.6, pattern="2:4".

    Returns:
        Masks, asked and achieved densities, and everything that was left out.

    Raises:
        SparsityError: Naming what is wrong; the model is unchanged if it is a matter of settings.

    Example:
        >>> layer = torch.nn.Linear(8, 4)
        >>> prune(layer, "magnitude", sparsity=0.75).sparsity
        0.75
    """
    chosen, found = check(model, method, targets=targets, **options)
    batches = _limited(list(calibration or ()), max_tokens)
    begin = time.perf_counter()
    with torch.no_grad():
        if isinstance(chosen, Layerwise):
            pruned, asked, notes = _prune_layers(model, chosen, found, batches, seed, progress)
        else:
            pruned, notes = _prune_model(model, chosen, found, batches, seed, loss_function)
            asked = {}
    masks = pruned
    report = PruneReport(
        method=chosen,
        mask=found.mask(model, masks),
        rows=tuple(_row(t.name, t.shape, masks[t.name], asked.get(t.name)) for t in found),
        targets=found,
        seconds=time.perf_counter() - begin,
        seed=seed,
        calibration_tokens=count_tokens(batches),
        notes=tuple(notes),
    )
    report.mask.verify(dict(model.named_parameters()))
    return _with_budget_note(report)


def check(
    model: nn.Module, method: str | Method, *, targets: Select = None, **options: Any
) -> tuple[Layerwise | ModelWide, Targets]:
    """Returns the method and its targets, or raises; nothing is pruned.

    Raises:
        SparsityError: For unknown names, targets that match nothing, a pattern that does not fit
            a layer, or weights that are not finite.
    """
    chosen = catalog.build(method, **options)
    if not isinstance(chosen, Layerwise | ModelWide):
        raise InvalidValue(
            f"{chosen.info.name} is a {chosen.info.kind} method; prune takes Layerwise and "
            "ModelWide ones. `sparsecraft methods` says which verb uses it."
        )
    found = find_targets(model, targets)
    parameters = dict(model.named_parameters())
    for target in found:
        chosen.pattern.check(target.shape, target.name)
    for name in dict.fromkeys(target.parameter for target in found):
        if not torch.isfinite(parameters[name]).all():
            raise NonFinite(f"{name} has NaN or infinite weights; the model was not touched")
    return chosen, found


def count_tokens(batches: Sequence[Batch]) -> int:
    """Returns how many tokens (or examples, where there are no tokens) the batches hold."""
    total = 0
    for batch in batches:
        if "attention_mask" in batch:
            total += int(batch["attention_mask"].sum())
        elif "input_ids" in batch:
            total += batch["input_ids"].numel()
        else:
            total += next(v.shape[0] for v in batch.values() if isinstance(v, Tensor))
    return total


def _prune_layers(
    model: nn.Module,
    method: Layerwise,
    targets: Targets,
    batches: list[Batch],
    seed: int,
    progress: Progress | None,
) -> tuple[dict[str, Tensor], dict[str, float], list[str]]:
    densities = method.allocation(targets.shapes, method.density)
    parameters = dict(model.named_parameters())
    kept: dict[str, Tensor] = {}
    notes: list[str] = []
    for stage in stages(model, targets, method.statistics, batches, progress):
        for target in stage.targets:
            parameter = parameters[target.parameter]
            if target.name in stage.unseen:
                kept[target.name] = torch.ones(target.matrix_shape, dtype=torch.bool)
                notes.append(f"{target.name}: left dense, no calibration token reached it")
                continue
            outcome = _prune_one(
                method, target.matrix(parameter), stage, target.name, densities, seed
            )
            target.write(parameter, outcome.weight)
            kept[target.name] = outcome.mask.cpu()
    return kept, densities, notes


def _prune_one(
    method: Layerwise,
    weight: Tensor,
    stage: Stage,
    name: str,
    densities: Mapping[str, float],
    seed: int,
) -> Pruned:
    layer = Layer(name, densities[name], seed, stage.values.get(name, {}))
    outcome = method.prune(weight.float(), layer)
    if outcome.mask.shape != weight.shape or outcome.weight.shape != weight.shape:
        raise InvalidValue(
            f"{method.info.name} returned shapes {tuple(outcome.weight.shape)} and "
            f"{tuple(outcome.mask.shape)} for {name}, which has {tuple(weight.shape)}"
        )
    return outcome


def _prune_model(
    model: nn.Module,
    method: ModelWide,
    targets: Targets,
    batches: list[Batch],
    seed: int,
    loss_function: LossFunction | None,
) -> tuple[dict[str, Tensor], list[str]]:
    weights = targets.matrices(model)
    context = CopyContext(model, targets, batches, seed, loss_function)
    if method.needs_batches:
        context.batches()
    with torch.enable_grad():
        outcome = method.prune(weights, context)
    parameters = dict(model.named_parameters())
    for target in targets:
        target.write(parameters[target.parameter], outcome[target.name].weight)
    empty = [name for name, each in outcome.items() if not each.mask.any()]
    notes = [f"{name}: nothing is left of it (layer collapse)" for name in empty]
    return {name: each.mask.cpu() for name, each in outcome.items()}, notes


def _row(name: str, shape: tuple[int, ...], keep: Tensor, asked: float | None) -> LayerReport:
    return LayerReport(name, shape, keep.numel(), asked, int(keep.sum()) / keep.numel())


def _with_budget_note(report: PruneReport) -> PruneReport:
    """Adds a note where the sparsity missed what was asked by more than rounding."""
    total = sum(row.numel for row in report.rows)
    by_row = isinstance(report.method.pattern, Unstructured) and report.method.pattern.per == "row"
    pieces = sum(row.shape[0] if by_row else 1 for row in report.rows)
    slack = max(pieces, 1) / total + 1e-9
    if abs(report.sparsity - report.asked) <= slack:
        return report
    note = (
        f"asked sparsity {report.asked:.4f}, achieved {report.sparsity:.4f} "
        f"over {total} targeted weights"
    )
    return PruneReport(**{**vars(report), "notes": (*report.notes, note)})


def _limited(batches: list[Batch], max_tokens: int | None) -> list[Batch]:
    """Returns the first batches that hold at most `max_tokens` tokens, at least one."""
    if max_tokens is None:
        return batches
    if max_tokens < 1:
        raise InvalidValue(f"max_tokens={max_tokens} is not allowed: give at least 1, or None")
    kept: list[Batch] = []
    for batch in batches:
        if kept and count_tokens([*kept, batch]) > max_tokens:
            break
        kept.append(batch)
    return kept
