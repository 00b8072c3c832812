"""Prunes a model with a method of the catalog: `prune(model, "wanda", sparsity=0.6)`.

The host of the kinds Layerwise and ModelWide: it finds the targets, shares the budget, gathers the
statistics, writes the weights back and says what it did to every parameter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsecraft.core import catalog
from sparsecraft.core.errors import InvalidValue, NonFinite
from sparsecraft.core.kinds import Layer, Layerwise, Method, ModelWide, Pruned, Role
from sparsecraft.model.calibration import Stage, stages
from sparsecraft.model.context import CopyContext, LossFunction
from sparsecraft.model.prune_report import (
    LayerReport,
    PruneReport,
    PruneSummary,
    budget_notes,
    layer_report,
)
from sparsecraft.model.roles import find_roles
from sparsecraft.model.saved_statistics import StatisticsFolder
from sparsecraft.model.targets import Select, Target, Targets, find_targets

__all__ = ["LayerReport", "PruneReport", "PruneSummary", "check", "prune"]
Batch = Mapping[str, Any]
Progress = Callable[[str, int, int], None]


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
    statistics: str | Path | None = None,
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
        statistics: A folder where the statistics of the layers' inputs are kept; if it has them
            already, of this model and calibration, they are used and no data pass the model. They
            are those of the pruning that gathered them, in which earlier blocks were pruned too.
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
    batches = limited(list(calibration or ()), max_tokens)
    begin = time.perf_counter()
    with torch.no_grad():
        if isinstance(chosen, Layerwise):
            asked = chosen.allocation(found.shapes, chosen.density)
            walk, said = _walk(model, chosen, found, batches, progress, statistics)
            roles = layer_roles(model, chosen, found, batches)
            done = _prune_layers(model, chosen, walk, asked, seed, roles)
            done.notes[:0] = said
        else:
            refuse_statistics(chosen, statistics)
            done = _prune_model(model, chosen, found, batches, seed, loss_function)
            asked = {}
    report = PruneReport(
        method=chosen,
        mask=found.mask(model, done.masks),
        rows=tuple(
            layer_report(t, done.masks[t.name], asked.get(t.name), done.facts.get(t.name))
            for t in found
        ),
        targets=found,
        seconds=time.perf_counter() - begin,
        seed=seed,
        calibration_tokens=count_tokens(batches),
        notes=tuple(done.notes),
    )
    report.mask.verify(dict(model.named_parameters()))
    return replace(report, notes=(*report.notes, *budget_notes(report)))


def check(
    model: nn.Module, method: str | Method, *, targets: Select = None, **options: Any
) -> tuple[Layerwise | ModelWide, Targets]:
    """Returns the method and its targets, or raises; nothing is pruned.

    Raises:
        SparsityError: For unknown names, targets that match nothing, a pattern that does not fit
            a layer, or weights that are not finite.
    """
    chosen, found = check_shapes(model, method, targets=targets, **options)
    check_finite(dict(model.named_parameters()), found)
    return chosen, found


def check_shapes(
    model: nn.Module, method: str | Method, *, targets: Select = None, **options: Any
) -> tuple[Layerwise | ModelWide, Targets]:
    """Returns the method and its targets, or raises; weights without memory will do.

    Raises:
        SparsityError: For unknown names, targets that match nothing, or a pattern that does not
            fit a layer.
    """
    chosen = catalog.build(method, **options)
    if not isinstance(chosen, Layerwise | ModelWide):
        raise InvalidValue(
            f"{chosen.info.name} is a {chosen.info.kind} method; prune takes Layerwise and "
            "ModelWide ones. `sparsecraft methods` says which verb uses it."
        )
    found = find_targets(model, targets)
    for target in found:
        chosen.pattern.check(target.shape, target.name)
    return chosen, found


def check_finite(parameters: Mapping[str, Tensor], targets: Iterable[Target]) -> None:
    """Raises NonFinite, naming the parameter, if a targeted weight is NaN or infinite."""
    for name in dict.fromkeys(target.parameter for target in targets):
        if not torch.isfinite(parameters[name]).all():
            raise NonFinite(f"{name} has NaN or infinite weights; the model was not touched")


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


@dataclass
class Outcome:
    """What became of targets.

    Args:
        masks: Target name to bool (outputs, inputs), True where kept.
        notes: What did not go as asked.
        facts: Target name to what the method reports of it.
    """

    masks: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Mapping[str, float]] = field(default_factory=dict)

    def add(self, other: Outcome) -> None:
        """Takes up what became of other targets."""
        self.masks |= other.masks
        self.notes += other.notes
        self.facts |= other.facts


def _walk(
    model: nn.Module,
    method: Layerwise,
    targets: Targets,
    batches: list[Batch],
    progress: Progress | None,
    statistics: str | Path | None,
) -> tuple[Iterator[Stage], list[str]]:
    """Returns the stages to prune, and what is to be said of where their statistics are from."""
    walk = stages(model, targets, method.statistics, batches, progress)
    if statistics is None:
        return walk, []
    refuse_statistics(method, statistics)
    folder = StatisticsFolder.of(statistics, model, batches)
    if folder.complete:
        folder.check(targets, method.statistics)
        return folder.read(targets, method.statistics), folder.notes(method)
    return folder.keeping(walk, method), []


def refuse_statistics(method: Layerwise | ModelWide, folder: str | Path | None) -> None:
    """Raises InvalidValue if a folder for statistics is given to a method that has none."""
    if folder is not None and not getattr(method, "statistics", ()):
        raise InvalidValue(
            f"{method.info.name} gathers no statistics of inputs, so that a folder for them has no "
            "effect; leave it out"
        )


def layer_roles(
    model: nn.Module, method: Layerwise, targets: Targets, batches: Sequence[Batch]
) -> Mapping[str, Role | None]:
    """Returns the role of every target, where the method asks for roles; None otherwise.

    Raises:
        NoMatch: If roles cannot be told, or the method names layers that are not there.
    """
    roles: Mapping[str, Role | None] = dict.fromkeys(targets.shapes)
    if method.needs_roles:
        roles = find_roles(model, targets, next(iter(batches), None))
    method.check_layers(roles)
    return roles


def _prune_layers(
    model: nn.Module,
    method: Layerwise,
    walk: Iterable[Stage],
    densities: Mapping[str, float],
    seed: int,
    roles: Mapping[str, Role | None],
) -> Outcome:
    parameters = dict(model.named_parameters())
    outcome = Outcome()
    for stage in walk:
        outcome.add(prune_stage(method, stage, parameters, densities, seed, roles))
    return outcome


def prune_stage(
    method: Layerwise,
    stage: Stage,
    parameters: Mapping[str, Tensor],
    densities: Mapping[str, float],
    seed: int,
    roles: Mapping[str, Role | None],
) -> Outcome:
    """Prunes the targets of a stage in place and returns what became of them.

    Args:
        method: The method.
        stage: The targets, with the statistics of their inputs.
        parameters: Name to parameter, for those of the targets at least.
        densities: Target name to the fraction to keep.
        seed: The run's seed.
        roles: Of `layer_roles`.
    """
    done = Outcome()
    for target in stage.targets:
        name, parameter = target.name, parameters[target.parameter]
        if name in stage.unseen:
            done.masks[name] = torch.ones(target.matrix_shape, dtype=torch.bool)
            done.notes.append(f"{name}: left dense, no calibration token reached it")
            continue
        layer = Layer(name, densities[name], seed, stage.values.get(name, {}), roles[name])
        outcome = _prune_one(method, target.matrix(parameter), layer)
        target.write(parameter, outcome.weight)
        done.masks[name] = outcome.mask.cpu()
        done.facts[name] = outcome.facts
    return done


def _prune_one(method: Layerwise, weight: Tensor, layer: Layer) -> Pruned:
    outcome = method.prune(weight.float(), layer)
    if outcome.mask.shape != weight.shape or outcome.weight.shape != weight.shape:
        raise InvalidValue(
            f"{method.info.name} returned shapes {tuple(outcome.weight.shape)} and "
            f"{tuple(outcome.mask.shape)} for {layer.name}, which has {tuple(weight.shape)}"
        )
    return outcome


def _prune_model(
    model: nn.Module,
    method: ModelWide,
    targets: Targets,
    batches: list[Batch],
    seed: int,
    loss_function: LossFunction | None,
) -> Outcome:
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
    masks = {name: each.mask.cpu() for name, each in outcome.items()}
    return Outcome(masks, notes, {name: each.facts for name, each in outcome.items()})


def limited(batches: list[Batch], max_tokens: int | None) -> list[Batch]:
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
