"""A model in the middle of a sparse training, as its method, hooks and checkpoints see it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsecraft.core.kinds import Clock, InTraining, TrainedLayer
from sparsecraft.core.mask import Mask
from sparsecraft.model.own_parameters import OwnParameters
from sparsecraft.model.sharding import whole
from sparsecraft.model.targets import Target, Targets
from sparsecraft.model.training_report import Event


class TrainedModel:
    """Clock, layers, masks and memory of a training.

    Args:
        model: Without wrappers.
        method: Of the training.
        targets: Of the model.
        total_steps: Optimiser steps of the whole training.
        seed: Of everything random.
    """

    def __init__(
        self,
        model: nn.Module,
        method: InTraining,
        targets: Targets,
        total_steps: int,
        seed: int,
    ) -> None:
        self.model = model
        self.method = method
        self.targets = targets
        self.total_steps = total_steps
        self.seed = seed
        self.step = 0
        self.rate = 0.0
        self.optimizer: Optimizer | None = None
        self.layers = {t.name: TrainedLayer(t.name, t.shape, seed) for t in targets}
        self.units: Any = None
        self.model_state: dict[str, Tensor] = {}
        self.own = OwnParameters({}, self.layers, {})
        self.active: dict[str, tuple[Tensor, Tensor]] = {}
        """Target name to (active at some step, active at every step)."""
        self.history: list[Event] = []

    @property
    def clock(self) -> Clock:
        """Where the training stands."""
        return Clock(self.step, self.total_steps, self.rate)

    @property
    def mask(self) -> Mask:
        """What is kept at present, by parameter name; empty while everything is dense."""
        return self.by_parameter({n: la.mask for n, la in self.layers.items()})

    @property
    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter as it is now, under all its names; sharding puts new ones in place."""
        return dict(self.model.named_parameters(remove_duplicate=False))

    def overrides(self, hook: str) -> bool:
        """Returns whether the method has a hook of its own."""
        return getattr(type(self.method), hook) is not getattr(InTraining, hook)

    def shown(self) -> dict[str, Tensor]:
        """Returns the raw weights, whole, without gradient, by target."""
        parameters = self.named_parameters
        return {t.name: t.view(whole(parameters[t.parameter].detach())) for t in self.targets}

    def weights(self) -> dict[str, Tensor]:
        """Returns the raw weights, (outputs, inputs, *kernel), by target; views with gradient."""
        parameters = self.named_parameters
        return {t.name: t.view(parameters[t.parameter]) for t in self.targets}

    def pairs(self) -> Iterator[tuple[Target, nn.Parameter]]:
        """Yields every target with its parameter."""
        parameters = self.named_parameters
        for target in self.targets:
            yield target, parameters[target.parameter]

    def follow_devices(self) -> None:
        """Brings masks, memory and own parameters to where the weights are by now."""
        for target, parameter in self.pairs():
            layer, device = self.layers[target.name], parameter.device
            if layer.mask is not None:
                layer.mask = layer.mask.to(device)
            layer.state.update({name: value.to(device) for name, value in layer.state.items()})
            for own in layer.parameters.values():
                own.data = own.data.to(device)
            layer.cache.clear()

    def by_parameter(self, masks: Mapping[str, Tensor | None]) -> Mask:
        """Returns masks by parameter name from masks by target name; None counts as no mask."""
        parameters = self.named_parameters
        found: dict[str, Tensor] = {}
        for target in self.targets:
            mask = masks.get(target.name)
            if mask is None:
                continue
            name = target.parameter
            if name not in found:
                found[name] = torch.ones(parameters[name].shape, dtype=torch.bool)
            target.write(found[name], mask.cpu())
        return Mask(found)

    def log(self, changed: int = 0, dense: bool = False) -> None:
        """Adds an event to the history where the densities are not those of the last one.

        Args:
            changed: Entries whose mask changed in the step just finished.
            dense: Whether it took the gradient of pruned weights too.
        """
        if self.step and not (changed or dense or self.overrides("active_density")):
            return
        densities = {}
        for name, layer in self.layers.items():
            density = self.method.active_density(layer, self.clock)
            if density is None:
                density = 1.0 if layer.mask is None else share(layer.mask)
            densities[name] = density
        if changed or dense or not self.history or self.history[-1].densities != densities:
            self.history.append(Event(self.step, densities, changed, dense))


def share(mask: Tensor) -> float:
    """Returns the fraction of True entries."""
    return int(mask.sum()) / max(1, mask.numel())
