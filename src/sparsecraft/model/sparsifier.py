"""The host of the kind InTraining: three lines in anybody's training loop make a model sparse.

It keeps the clock (optimiser steps, so that gradient accumulation does not matter), the masks by
name, the optimiser's moments, the method's own parameters and the agreement of ranks; the method
only says what becomes of a weight. The model keeps its own `state_dict` keys all the while: where
a method computes with a function of its weights, the values under these keys are the raw ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from sparsecraft.core import catalog
from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.kinds import Method
from sparsecraft.core.scores import check_finite
from sparsecraft.model.context import LossFunction
from sparsecraft.model.digests import digest
from sparsecraft.model.finishing import finish_units, finished, notes, put
from sparsecraft.model.frozen import check_owned
from sparsecraft.model.input_watch import InputWatch
from sparsecraft.model.ranks import check_agreement
from sparsecraft.model.recording import Recording
from sparsecraft.model.shadowing import shadow
from sparsecraft.model.sharding import local, part_of, whole
from sparsecraft.model.targets import Select, Target, assembled, find_targets
from sparsecraft.model.trained_model import TrainedModel, share
from sparsecraft.model.training_begin import (
    begin,
    check_free,
    checked_method,
    checked_steps,
    mark,
    teacher_of,
)
from sparsecraft.model.training_report import TrainingReport
from sparsecraft.model.training_state import load_state, state_of
from sparsecraft.model.training_steps import Steps
from sparsecraft.model.wrappers import unwrapped, unwrapped_optimizer


class Sparsifier(TrainedModel):
    """Makes a model sparse while it trains.

    Args:
        model: Any module. With FSDP2 make the Sparsifier first, on the whole model, then call
            `fully_shard`, make the optimiser and attach; with DDP the order does not matter.
        method: Name in the catalog, "file.py:Class", or a method that is built already.
        total_steps: Optimiser steps of the whole training.
        targets: Which layers; see `find_targets`. By default the matrices of the blocks.
        seed: Of everything random.
        calibration: Batches for a first mask that is made from data or gradients; groups of
            entries are found by the first of them.
        loss_function: (output, batch, temperature) -> scalar, for such a mask.
        teacher: The model to learn from, where the method learns from one; by default a frozen
            copy of the model as it is now.
        options: Settings of the method, for example sparsity=0.9.

    Raises:
        SparsityError: Naming what is wrong; the model is unchanged then.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> sparsifier = Sparsifier(model, "static", sparsity=0.75, total_steps=3).attach(sgd)
        >>> for _ in range(3):
        ...     loss = model(torch.ones(4, 8)).square().mean() + sparsifier.loss()
        ...     loss.backward()
        ...     sgd.step()
        >>> sparsifier.finalize().sparsity
        0.75
    """

    def __init__(
        self,
        model: nn.Module,
        method: str | Method,
        *,
        total_steps: int,
        targets: Select = None,
        seed: int = 0,
        calibration: Sequence[Mapping[str, Any]] | None = None,
        loss_function: LossFunction | None = None,
        teacher: nn.Module | None = None,
        **options: Any,
    ) -> None:
        chosen = checked_method(catalog.build(method, **options))
        inner = unwrapped(model)
        found = chosen.targets(inner, targets) or find_targets(inner, targets)
        super().__init__(inner, chosen, found, checked_steps(total_steps), seed)
        check_free(inner, found)
        teacher = teacher_of(inner, chosen, teacher)
        begin(self, targets, calibration, loss_function)
        self._steps: Steps | None = None
        self._handles: list[RemovableHandle] = []
        self._computed: set[str] = set()
        self._shadowed = True
        self._finished = False
        self._recording = Recording(inner, chosen.captures, teacher)
        self._watch: InputWatch | None = None
        if chosen.statistics:
            due = lambda: self.method.due(self.clock)  # noqa: E731
            self._watch = InputWatch(inner, list(found), chosen.statistics, due)
        if self.overrides("forward"):
            self._shadow()
        mark(self, self)
        self.log()

    @property
    def attached(self) -> bool:
        """Whether an optimiser drives it."""
        return self.optimizer is not None

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yields the method's own trained parameters.

        The host steps them with the user's learning rate. Give them to your optimiser instead
        where it shall clip or scale their gradients too.
        """
        return iter(self.own)

    def attach(self, optimizer: Optimizer) -> Sparsifier:
        """Hooks into the optimiser; from here on its steps keep the model sparse.

        Args:
            optimizer: Of all targeted parameters that train.

        Returns:
            Itself.

        Raises:
            InvalidValue: If it does not hold the parameters, is not the one that the method
                needs, if another is attached already, or if ranks disagree.
        """
        if self.attached or self._finished:
            raise InvalidValue(
                "this Sparsifier is attached or finalized already: make a new one for each training"
            )
        optimizer = unwrapped_optimizer(optimizer)
        check_owned({t.parameter: None for t in self.targets}, self.named_parameters, optimizer)
        wanted = self.method.optimizer_type
        if wanted is not None and not isinstance(optimizer, wanted):
            raise InvalidValue(
                f"{self.method.info.name} needs the optimiser {wanted.__name__}, not "
                f"{type(optimizer).__name__}: it is a part of the method"
            )
        self.method.check_optimizer(optimizer)
        check_agreement(self._facts())
        self.optimizer = optimizer
        self.follow_devices()
        mark(self, self)  # the parameters may be new ones: fully_shard replaces them
        self.own.attach(optimizer)
        if hasattr(optimizer, "bind"):
            optimizer.bind(self)
        self._steps = Steps(self, optimizer, self._watch, self._computed)
        forget = optimizer.register_step_post_hook(lambda *_: self._recording.clear())
        self._handles.append(forget)
        return self

    def loss(self) -> Tensor:
        """Returns what the method adds to the task's loss: a scalar, zero where it adds nothing."""
        found = None
        if self.overrides("loss"):
            found = self.method.loss(self._recording.captured(), self.weights(), self.clock)
        if found is None:
            return torch.zeros((), device=next(self.model.parameters()).device)
        return found

    def mask_of(self, parameter: Tensor) -> Tensor | None:
        """Returns the mask of a parameter, this rank's part of it, or None where it has none."""
        mask = self.mask
        for name, each in self.named_parameters.items():
            if each is parameter and name in mask:
                return part_of(mask[name], each)
        return None

    def export_state_dict(self) -> dict[str, Tensor]:
        """Returns the model's `state_dict` with the effective, masked weights under its keys."""
        with self.exported():
            return {name: value.clone() for name, value in self.model.state_dict().items()}

    @contextmanager
    def exported(self) -> Iterator[nn.Module]:
        """Gives the model with the weights it would have if it were finished now.

        For evaluating and saving in the middle of a training; the raw weights come back after.
        Units are not cut to their final number and no side branch is put in place here.
        """
        parameters = self.named_parameters
        names = {target.parameter for target in self.targets}
        raw = {name: local(parameters[name]).detach().clone() for name in names}
        weights, _ = finished(self)
        self._shadowed = False
        try:
            put(self, weights)
            yield self.model
        finally:
            with torch.no_grad():
                for name, value in raw.items():
                    local(parameters[name]).copy_(value)
            self._shadowed = True

    @torch.no_grad()
    def finalize(self) -> TrainingReport:
        """Leaves an ordinary model with exact zeros, and returns what was achieved.

        With several ranks, every one of them calls it.

        Raises:
            NonFinite: If a weight is NaN or infinite; nothing is changed then.
            InvalidValue: If it was finalized before.
        """
        if self._finished:
            raise InvalidValue("this Sparsifier is finalized already")
        for target, parameter in self.pairs():
            check_finite(local(parameter), f"{target.name}: the trained weight")
        finish_units(self)
        weights, mask = finished(self)
        said = tuple(notes(self, mask))
        put(self, weights)
        parameters = self.named_parameters
        mask.verify({name: whole(parameters[name]) for name in mask})
        self.detach()
        self._finished = True
        model = self.method.surgery(self.model, self.layers)
        return TrainingReport(
            model=model,
            method=self.method,
            mask=mask,
            targets=self.targets,
            steps=(self.step, self.total_steps),
            history=tuple(self.history),
            ever_active={name: share(ever) for name, (ever, _) in self.active.items()},
            always_active={name: share(always) for name, (_, always) in self.active.items()},
            form="plain" if model is self.model else "augmented",
            notes=said,
        )

    def detach(self) -> None:
        """Takes all hooks away; weights stay as they are, raw ones where a method has such."""
        while self._handles:
            self._handles.pop().remove()
        for each in (self._steps, self._recording, self._watch):
            if each is not None:
                each.remove()
        mark(self, None)
        self.optimizer = None

    def state_dict(self) -> dict[str, Any]:
        """Returns clock, masks, the method's memory and own parameters; the model is not in it."""
        return state_of(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state, bit by bit as if never stopped.

        Load the model's and the optimiser's states too; the order does not matter.

        Raises:
            CheckpointError: If it belongs to another method, setting, seed, length or model.
        """
        load_state(self, state)
        if self._steps is not None:
            self._steps.hold()

    def _shadow(self) -> None:
        by_parameter: dict[str, list[Target]] = {}
        for target in self.targets:
            by_parameter.setdefault(target.parameter, []).append(target)
        for name, group in by_parameter.items():
            self._handles += shadow(self.model, name, self._computing(name, group))

    def _computing(self, name: str, group: Sequence[Target]) -> Any:
        def forward(target: Target, part: Tensor) -> Tensor:
            return self.method.forward(part, self.layers[target.name], self.clock)

        def compute(_: nn.Module, parameter: Tensor) -> Tensor:
            self._computed.add(name)
            return assembled(parameter, group, forward) if self._shadowed else parameter

        return compute

    def _facts(self) -> dict[str, str]:
        """Returns what all ranks must have been given alike."""
        return {
            "method": json.dumps(catalog.describe(self.method), default=str, sort_keys=True),
            "number of steps": str(self.total_steps),
            "seed": str(self.seed),
            "step": str(self.step),
            "shapes of the model": str(
                {name: tuple(p.shape) for name, p in self.named_parameters.items()}
            ),
            "masks": digest(sorted(self.mask.items())),
        }
