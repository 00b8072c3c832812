"""How a sparse training begins: what is refused, the first masks, the method's own parameters."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.kinds import InTraining, Method
from sparsecraft.model.context import LossFunction
from sparsecraft.model.own_parameters import OwnParameters
from sparsecraft.model.pruning import prune
from sparsecraft.model.targets import Select, Targets, ties
from sparsecraft.model.trained_model import TrainedModel

_OWNER = "_sparsecraft_sparsifier"
Batches = Sequence[Mapping[str, Any]] | None


@torch.no_grad()
def begin(
    trained: TrainedModel, select: Select, calibration: Batches, loss_function: LossFunction | None
) -> None:
    """Makes the first masks, the method's own parameters and the weights to start with.

    Args:
        trained: Whose layers are filled; frozen weights outside a first mask become zero.
        select: The targets as the user gave them.
        calibration: For a first mask made from data, and for finding groups.
        loss_function: For a first mask made from gradients.
    """
    method, parameters = trained.method, trained.named_parameters
    trained.units = method.units(trained.model, _example(calibration))
    first = method.start()
    if first is not None:
        report = prune(
            copy.deepcopy(trained.model),
            first,
            targets=select,
            calibration=calibration,
            seed=trained.seed,
            loss_function=loss_function,
        )
        for target, parameter in trained.pairs():
            mask = target.view(report.mask[target.parameter])
            trained.layers[target.name].mask = mask.to(parameter.device)
    values = method.own_parameters(trained.shown(), trained.layers)
    trained.own = OwnParameters(values, trained.layers, method.own_options())
    if first is not None and method.masked_weights == "frozen":
        trained.mask.apply_(parameters)
    for target, parameter in trained.pairs():
        seen = target.view(parameter)
        begun = method.begin(seen, trained.layers[target.name], trained.clock)
        if begun is not seen:
            seen.copy_(begun)
    if trained.overrides("update_masks"):
        trained.active = {
            name: (layer.mask.clone(), layer.mask.clone())
            for name, layer in trained.layers.items()
            if layer.mask is not None
        }


def checked_method(method: Method) -> InTraining:
    """Returns the method, or raises InvalidValue if it does not work while a model trains."""
    if not isinstance(method, InTraining):
        raise InvalidValue(
            f"{method.info.name} is of the kind {method.info.kind}, which does not work while a "
            "model trains: use prune() or the method's run(). `sparsecraft methods` lists those of "
            'the kind InTraining; Sparsifier(model, "static", source=...) trains under any mask.'
        )
    return method


def checked_steps(steps: Any) -> int:
    """Returns the number of steps, or raises InvalidValue."""
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise InvalidValue(
            f"total_steps={steps!r} is not allowed: give the number of optimiser steps of the "
            "whole training, at least 1; schedules are laid over it"
        )
    return steps


def check_free(model: nn.Module, targets: Targets) -> None:
    """Raises InvalidValue for weights that are tied, sharded, or under another Sparsifier."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    tied = ties(model)
    for target in targets:
        name, parameter = target.parameter, parameters[target.parameter]
        if name in tied:
            raise InvalidValue(
                f"{name} is tied to {tied[name][0]}: a mask on one would change the other. Leave "
                "it out of the targets ('!name'), or untie the two."
            )
        if isinstance(parameter, DTensor):
            raise InvalidValue(
                f"{name} is sharded already: make the Sparsifier on the whole model, then call "
                "fully_shard, make the optimiser and attach"
            )
        owner = getattr(parameter, _OWNER, None)
        if owner is not None:
            raise InvalidValue(
                f"{name} is under another Sparsifier ({owner.method.info.name}): finalize or "
                "detach that one first, or choose other targets"
            )


def mark(trained: TrainedModel, owner: Any) -> None:
    """Notes on each targeted parameter whose it is; None frees them."""
    for _, parameter in trained.pairs():
        setattr(parameter, _OWNER, owner)


def teacher_of(model: nn.Module, method: InTraining, given: nn.Module | None) -> nn.Module | None:
    """Returns the frozen model to learn from: the given one, or a copy of the model as it is."""
    if "teacher" not in method.captures:
        return None
    teacher = copy.deepcopy(model) if given is None else given
    return teacher.eval().requires_grad_(False)


def _example(batches: Batches) -> dict[str, Any] | None:
    """Returns the first batch without its labels."""
    return {k: v for k, v in batches[0].items() if k != "labels"} if batches else None
