"""The host of the kind InTraining: three lines in anybody's training loop make a model sparse.

It keeps the clock (optimiser steps, so that gradient accumulation does not matter), the masks by
name, the optimiser's moments, the method's own parameters and the agreement of ranks; the method
only says what becomes of a weight. The model keeps its own `state_dict` keys all the while: where
a method computes with a function of its weights, the values under these keys are the raw ones.
"""

from __future__ import annotations

import copy
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
from sparsecraft.core.kinds import Clock, InTraining, Method, Tensors, TrainedLayer
from sparsecraft.core.mask import Mask
from sparsecraft.core.scores import check_finite
from sparsecraft.model.context import LossFunction
from sparsecraft.model.frozen import HeldMask, check_owned, clear_moments
from sparsecraft.model.input_watch import InputWatch
from sparsecraft.model.own_parameters import OwnParameters
from sparsecraft.model.pruning import prune
from sparsecraft.model.ranks import any_rank, check_agreement, digest, of_first_rank
from sparsecraft.model.recording import Recording
from sparsecraft.model.shadowing import shadow
from sparsecraft.model.sharding import local, part_of, whole, write
from sparsecraft.model.targets import Select, Target, Targets, find_targets, ties
from sparsecraft.model.training_report import Event, TrainingReport
from sparsecraft.model.training_state import load_state, state_of

_OWNER = "_sparsecraft_sparsifier"


class Sparsifier:
    """Makes a model sparse while it trains.

    Args:
        model: Any module. With FSDP2 make the Sparsifier first, on the whole model, then call
            `fully_shard`, make the optimiser and attach; with DDP the order does not matter.
        method: Name in the catalog, "file.py:Class", or a method that is built already.
        total_steps: Optimiser steps of the whole training.
        targets: Which layers; see `find_targets`. By default the matrices of the blocks.
        seed: Of everything random.
        calibration: Batches for a first mask that is made from data or gradients.
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
        self.method = _in_training(catalog.build(method, **options))
        self.total_steps = _checked_steps(total_steps)
        self.model = unwrapped(model)
        self.seed = seed
        self.targets: Targets = self.method.targets(self.model, targets) or find_targets(
            self.model, targets
        )
        parameters = self._parameters()
        _check_free(self.model, self.targets, parameters)
        teacher = self._teacher(teacher)
        self.step = 0
        self.rate = 0.0
        self.optimizer: Optimizer | None = None
        self.model_state: dict[str, Tensor] = {}
        self.history: list[Event] = []
        self.active: dict[str, tuple[Tensor, Tensor]] = {}
        self._held: HeldMask | None = None
        self._previous: Tensors | None = None
        self._handles: list[RemovableHandle] = []
        self._computed: set[str] = set()
        self._shadowed = True
        self._finished = False
        self.layers = {t.name: TrainedLayer(t.name, t.shape, seed) for t in self.targets}
        self.units = self.method.units(self.model)
        self._start(targets, calibration, loss_function)
        self._recording = Recording(self.model, self.method.captures, teacher)
        wanted = self.method.statistics
        self._watch = (
            InputWatch(self.model, list(self.targets), wanted, lambda: self.method.due(self.clock))
            if wanted
            else None
        )
        if self._overrides("forward"):
            self._shadow()
        self._mark(self)
        self._log()

    @property
    def clock(self) -> Clock:
        """Where the training stands."""
        return Clock(self.step, self.total_steps, self.rate)

    @property
    def mask(self) -> Mask:
        """What is kept at present, by parameter name; empty while everything is dense."""
        return self._mask({n: layer.mask for n, layer in self.layers.items()})

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
        optimizer = _unwrapped_optimizer(optimizer)
        parameters = self._parameters()
        check_owned({t.parameter: None for t in self.targets}, parameters, optimizer)
        wanted = self.method.optimizer_type
        if wanted is not None and not isinstance(optimizer, wanted):
            raise InvalidValue(
                f"{self.method.info.name} needs the optimiser {wanted.__name__}, not "
                f"{type(optimizer).__name__}: it is a part of the method"
            )
        self.method.check_optimizer(optimizer)
        self._check_ranks(parameters)
        self.optimizer = optimizer
        self._mark(self)  # the parameters may be new ones: fully_shard replaces them
        self.own.attach(optimizer)
        if hasattr(optimizer, "bind"):
            optimizer.bind(self)
        if self.method.masked_weights == "frozen" and self.mask:
            self._hold(self.mask)
        self.rate = self._rate()
        self._handles += [
            optimizer.register_step_pre_hook(lambda _, args, kwargs: self._before(args, kwargs)),
            optimizer.register_step_post_hook(lambda *_: self._after()),
        ]
        return self

    def loss(self) -> Tensor:
        """Returns what the method adds to the task's loss: a scalar, zero where it adds nothing."""
        found = None
        if self._overrides("loss"):
            found = self.method.loss(self._recording.captured(), self.weights(), self.clock)
        if found is None:
            return torch.zeros((), device=next(self.model.parameters()).device)
        return found

    def weights(self) -> dict[str, Tensor]:
        """Returns the raw weights, (outputs, inputs, *kernel), by target; views with gradient."""
        parameters = self._parameters()
        return {t.name: t.view(parameters[t.parameter]) for t in self.targets}

    def mask_of(self, parameter: Tensor) -> Tensor | None:
        """Returns the mask of a parameter, this rank's part of it, or None where it has none."""
        for name, each in self._parameters().items():
            if each is parameter:
                mask = self.mask
                return part_of(mask[name], each) if name in mask else None
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
        parameters = self._parameters()
        names = {target.parameter for target in self.targets}
        raw = {name: local(parameters[name]).detach().clone() for name in names}
        weights, mask = self._finished_weights()
        self._shadowed = False
        try:
            self._write(weights, mask)
            yield self.model
        finally:
            with torch.no_grad():
                for name, value in raw.items():
                    local(parameters[name]).copy_(value)
            self._shadowed = True

    @torch.no_grad()
    def finalize(self) -> TrainingReport:
        """Leaves an ordinary model with exact zeros, and returns what was achieved.

        Raises:
            NonFinite: If a weight is NaN or infinite; nothing is changed then.
            InvalidValue: If it was finalized before.
        """
        if self._finished:
            raise InvalidValue("this Sparsifier is finalized already")
        parameters = self._parameters()
        for target in self.targets:
            check_finite(local(parameters[target.parameter]), f"{target.name}: the trained weight")
        if self.units is not None:
            shown = {name: whole(p) for name, p in parameters.items()}
            self.method.finish_units(self.units, shown, self.model_state, self.clock)
            for name, value in shown.items():
                write(parameters[name], value)
        weights, mask = self._finished_weights()
        notes = tuple(self._notes(mask, self._shown()))
        self._write(weights, mask)
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
            ever_active={n: _share(ever) for n, (ever, _) in self.active.items()},
            always_active={n: _share(always) for n, (_, always) in self.active.items()},
            form="plain" if model is self.model else "augmented",
            notes=notes,
        )

    def detach(self) -> None:
        """Takes all hooks away; weights stay as they are, raw ones where a method has such."""
        while self._handles:
            self._handles.pop().remove()
        if self._held is not None:
            self._held.remove()
        self._recording.remove()
        if self._watch is not None:
            self._watch.remove()
        self._mark(None)
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
        if self._held is not None:
            self._held.replace(self.mask)
        elif self.attached and self.method.masked_weights == "frozen" and self.mask:
            self._hold(self.mask)

    # -- the start -------------------------------------------------------------------------------

    def _start(
        self,
        select: Select,
        calibration: Sequence[Mapping[str, Any]] | None,
        loss_function: LossFunction | None,
    ) -> None:
        first = self.method.start()
        if first is not None:
            report = prune(
                copy.deepcopy(self.model),
                first,
                targets=select,
                calibration=calibration,
                seed=self.seed,
                loss_function=loss_function,
            )
            for target in self.targets:
                mask = report.mask[target.parameter]
                device = self._parameters()[target.parameter].device
                self.layers[target.name].mask = target.view(mask).to(device)
        values = self.method.own_parameters(self._shown(), self.layers)
        self.own = OwnParameters(values, self.layers, self.method.own_options())
        with torch.no_grad():
            if first is not None and self.method.masked_weights == "frozen":
                self.mask.apply_(self._parameters())
            parameters = self._parameters()
            for target in self.targets:
                seen = target.view(parameters[target.parameter])
                begun = self.method.begin(seen, self.layers[target.name], self.clock)
                if begun is not seen:
                    seen.copy_(begun)
        if self._overrides("update_masks") and self.mask:
            self.active = {
                name: (layer.mask.clone(), layer.mask.clone())
                for name, layer in self.layers.items()
                if layer.mask is not None
            }

    def _teacher(self, given: nn.Module | None) -> nn.Module | None:
        if "teacher" not in self.method.captures:
            return None
        teacher = copy.deepcopy(self.model) if given is None else given
        return teacher.eval().requires_grad_(False)

    def _shadow(self) -> None:
        by_parameter: dict[str, list[Target]] = {}
        for target in self.targets:
            by_parameter.setdefault(target.parameter, []).append(target)
        for name, group in by_parameter.items():
            self._handles += shadow(self.model, name, self._computing(name, group))

    def _computing(self, name: str, group: Sequence[Target]) -> Any:
        def compute(_: nn.Module, parameter: Tensor) -> Tensor:
            self._computed.add(name)
            if not self._shadowed:
                return parameter
            return assembled(
                parameter,
                group,
                lambda t, part: self.method.forward(part, self.layers[t.name], self.clock),
            )

        return compute

    # -- a step ----------------------------------------------------------------------------------

    @torch.no_grad()
    def _before(self, args: Any, kwargs: Mapping[str, Any]) -> None:
        if any(callable(each) for each in args[1:]) or kwargs.get("closure") is not None:
            raise InvalidValue(
                "the optimiser is stepped with a closure, inside which gradients cannot be edited: "
                "use one that steps without"
            )
        if self.step >= self.total_steps:
            raise InvalidValue(
                f"step {self.step + 1} is beyond total_steps={self.total_steps}: the schedule is "
                "over. Finalize, or make the Sparsifier with the real number of optimiser steps."
            )
        self._check_gradients()
        self.rate = self._rate()
        if self._overrides("edit_gradient"):
            for target, parameter in self._training():
                weight = target.view(whole(parameter))
                total = whole(parameter.grad)  # type: ignore[arg-type]
                seen = target.view(total)
                edited = self.method.edit_gradient(
                    weight, seen, self.layers[target.name], self.clock
                )
                if edited is not seen:
                    seen.copy_(edited)
                write(parameter.grad, total)  # type: ignore[arg-type]
        if self._held is not None:
            self._held.clear_gradients()
        self.own.before_step()
        if self.units is not None and self.method.keeps_previous(self.clock):
            self._previous = {n: whole(p).clone() for n, p in self._parameters().items()}

    @torch.no_grad()
    def _after(self) -> None:
        if self._overrides("after_step"):
            for target, parameter in self._training(need_gradient=False):
                total = whole(parameter)
                seen = target.view(total)
                stepped = self.method.after_step(seen, self.layers[target.name], self.clock)
                if stepped is not seen:
                    seen.copy_(stepped)
                write(parameter, total)
        if self.units is not None:
            self._step_units()
        self.own.step(self.rate)
        if self._held is not None:
            self._held.clear_weights()
        changed, dense = 0, False
        if self.method.due(self.clock):
            changed, dense = self._update_masks(), self.method.dense_gradients
        self.step += 1
        self._log(changed, dense)
        self._recording.clear()
        for layer in self.layers.values():
            layer.cache.clear()

    def _step_units(self) -> None:
        parameters = self._parameters()
        shown = {name: whole(p) for name, p in parameters.items()}
        cleared = self.method.step_units(
            self.units, shown, self._previous, self.model_state, self.clock
        )
        self._previous = None
        for name, value in shown.items():
            write(parameters[name], value)
        for name, gone in cleared.items():
            clear_moments(self.optimizer, parameters[name], part_of(gone, parameters[name]))  # type: ignore[arg-type]

    def _update_masks(self) -> int:
        seen = {} if self._watch is None else self._watch.values()
        for name, layer in self.layers.items():
            layer.statistics = seen.get(name, {})
        found = self.method.update_masks(self._shown(), self._gradients(), self.layers, self.clock)
        decided = of_first_rank(found)
        changed = 0
        for name, mask in decided.items():
            before = self.layers[name].mask
            old = torch.ones_like(mask) if before is None else before
            changed += int((old != mask).sum())
            self.layers[name].mask = mask
            ever, always = self.active.get(name, (old, old))
            self.active[name] = (ever | mask, always & mask)
        if self.method.masked_weights == "frozen" and decided:
            if self._held is None:
                self._hold(self.mask)
            else:
                self._held.replace(self.mask)
        return changed

    def _gradients(self) -> dict[str, Tensor]:
        """Returns the gradients of this step; those of pruned weights too where collected."""
        parameters = self._parameters()
        dense = self._dense_gradients()
        found: dict[str, Tensor] = {}
        for target in self.targets:
            gradient = parameters[target.parameter].grad
            if gradient is None:
                continue
            total = whole(gradient)
            if target.parameter in dense:
                total = total + dense[target.parameter]
            found[target.name] = target.view(total)
        return found

    def _dense_gradients(self) -> dict[str, Tensor]:
        """Returns the collected gradients of pruned weights, whole and averaged over the ranks."""
        if self._held is None or not self._held.dense:
            return {}
        collected, self._held.dense = self._held.dense, {}
        return gathered(collected, self._parameters())

    def _check_gradients(self) -> None:
        optimizer = self.optimizer
        assert optimizer is not None
        gradients = [
            local(p.grad) for g in optimizer.param_groups for p in g["params"] if p.grad is not None
        ]
        gradients += [p.grad for p in self.own if p.grad is not None]
        if not gradients:
            raise InvalidValue("no parameter has a gradient: call backward() before step()")
        norms = torch._foreach_norm(gradients)
        device = gradients[0].device
        total = torch.stack([norm.to(device, torch.float32) for norm in norms]).sum()
        if any_rank(not bool(torch.isfinite(total)), device):
            self._refuse_step(optimizer)
        if self._overrides("forward") and self.step == 0:
            self._check_computed()

    def _refuse_step(self, optimizer: Optimizer) -> None:
        from sparsecraft.core.errors import NonFinite

        raise NonFinite(
            f"the gradient of step {self.step + 1} is NaN or infinite (the loss is, or overflows). "
            "Weights, moments and masks are as they were before this step."
        )

    def _check_computed(self) -> None:
        silent = [
            target.parameter
            for target, parameter in self._training()
            if target.parameter not in self._computed
        ]
        if silent:
            raise InvalidValue(
                f"{silent[0]} trains, but its module was never called, so that "
                f"{self.method.info.name} could not take part. Either another module reads its "
                "weight: leave it out of the targets. Or the model ran compiled before: make the "
                "Sparsifier first, or call torch._dynamo.reset()."
            )

    # -- the end ---------------------------------------------------------------------------------

    def _finished_weights(self) -> tuple[dict[str, Tensor], Mask]:
        """Returns whole effective parameters by name, and the final mask."""
        parameters = self._parameters()
        shown = self._shown()
        finals = dict(self.method.final_masks(shown, self.layers, self.clock))
        if self.units is not None and not finals:
            finals = {name: weight != 0 for name, weight in shown.items()}
        finals = of_first_rank(finals)
        weights: dict[str, Tensor] = {}

        def finished(target: Target, part: Tensor) -> Tensor:
            made = self.method.export(part, self.layers[target.name], self.clock)
            keep = finals.get(target.name)
            return made if keep is None else made.masked_fill(~keep.to(made.device), 0)

        with torch.no_grad():
            for target in self.targets:
                name = target.parameter
                before = weights.get(name, whole(parameters[name]).detach())
                weights[name] = assembled(before, [target], finished)
        return weights, self._mask(finals)

    @torch.no_grad()
    def _write(self, weights: Mapping[str, Tensor], mask: Mask) -> None:
        parameters = self._parameters()
        for name, value in weights.items():
            write(parameters[name], value)

    def _notes(self, mask: Mask, raw: Tensors) -> Iterator[str]:
        yield from self.method.remarks(raw, self.layers, self.clock)
        if self.step < self.total_steps:
            yield (
                f"finalized after {self.step} of {self.total_steps} steps: what the method plans "
                "for the rest did not happen"
            )
        density = getattr(self.method, "density", None)
        if density is not None:
            total = self.targets.numel
            kept = total - (mask.numel - mask.kept)
            if abs(kept - density * total) > max(1.0, len(self.targets)):
                yield (
                    f"asked sparsity {1 - density:.4f}, achieved {1 - kept / total:.4f} of the "
                    f"{total} targeted weights"
                )

    # -- small things ----------------------------------------------------------------------------

    def _parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters(remove_duplicate=False))

    def _shown(self) -> dict[str, Tensor]:
        parameters = self._parameters()
        return {t.name: t.view(whole(parameters[t.parameter].detach())) for t in self.targets}

    def _training(self, *, need_gradient: bool = True) -> Iterator[tuple[Target, nn.Parameter]]:
        parameters = self._parameters()
        for target in self.targets:
            parameter = parameters[target.parameter]
            if parameter.grad is not None or not need_gradient:
                yield target, parameter

    def _mask(self, masks: Mapping[str, Tensor | None]) -> Mask:
        """Returns masks by parameter name."""
        parameters = self._parameters()
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

    def _hold(self, mask: Mask) -> None:
        parameters = self._parameters()
        assert self.optimizer is not None
        self._held = HeldMask(
            {name: parameters[name] for name in mask},
            mask,
            self.optimizer,
            lambda: self.method.dense_gradients and self.method.due(self.clock),
        )

    def _rate(self) -> float:
        assert self.optimizer is not None
        first = self._parameters()[self.targets[0].parameter]
        for group in self.optimizer.param_groups:
            if any(parameter is first for parameter in group["params"]):
                return float(group["lr"])
        return float(self.optimizer.param_groups[0]["lr"])

    def _log(self, changed: int = 0, dense: bool = False) -> None:
        """Adds an event where the densities are not those of the last one."""
        if self.step and not (changed or dense or self._overrides("active_density")):
            return
        densities = {}
        for name, layer in self.layers.items():
            density = self.method.active_density(layer, self.clock)
            if density is None:
                density = 1.0 if layer.mask is None else _share(layer.mask)
            densities[name] = density
        if changed or dense or not self.history or self.history[-1].densities != densities:
            self.history.append(Event(self.step, densities, changed, dense))

    def _overrides(self, hook: str) -> bool:
        return getattr(type(self.method), hook) is not getattr(InTraining, hook)

    def _mark(self, owner: Sparsifier | None) -> None:
        parameters = self._parameters()
        for target in self.targets:
            setattr(parameters[target.parameter], _OWNER, owner)

    def _check_ranks(self, parameters: Mapping[str, Tensor]) -> None:
        check_agreement(
            {
                "method": json.dumps(catalog.describe(self.method), default=str, sort_keys=True),
                "number of steps": str(self.total_steps),
                "seed": str(self.seed),
                "step": str(self.step),
                "shapes of the model": str({n: tuple(p.shape) for n, p in parameters.items()}),
                "masks": digest(self.mask),
            }
        )


def assembled(parameter: Tensor, targets: Sequence[Target], compute: Any) -> Tensor:
    """Returns the parameter with every target's part replaced by `compute(target, part)`.

    Args:
        parameter: Of the parameter's own shape.
        targets: Its targets: one for a plain weight, several for fused or stacked ones.
        compute: (target, (outputs, inputs, *kernel)) -> the same shape; differentiable.
    """
    only = targets[0]
    if len(targets) == 1 and only.index is None and only.rows is None:
        made = compute(only, only.view(parameter))
        return made.transpose(0, 1) if only.input_axis == 0 else made
    result = parameter.clone()
    for target in targets:
        target.view(result).copy_(compute(target, target.view(parameter)))
    return result


def gathered(parts: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns whole tensors from what each rank collected for its part of the parameters."""
    from torch.distributed.tensor import DTensor

    from sparsecraft.model.ranks import mean_over_ranks_

    found = {}
    for name in sorted(parts):
        parameter, part = parameters[name], parts[name]
        if isinstance(parameter, DTensor):
            spread = DTensor.from_local(
                part,
                parameter.device_mesh,
                parameter.placements,
                shape=parameter.shape,
                stride=parameter.stride(),
            )
            found[name] = spread.full_tensor()
        else:
            mean_over_ranks_([part])
            found[name] = part
    return found


def unwrapped(model: nn.Module) -> nn.Module:
    """Returns the module inside DDP, DataParallel and torch.compile."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(
            model, nn.parallel.DistributedDataParallel | nn.DataParallel
        ):
            inner = model.module
        if inner is None:
            return model
        model = inner


def _unwrapped_optimizer(optimizer: Any) -> Optimizer:
    inner = getattr(optimizer, "optimizer", None)  # as Accelerate wraps it
    optimizer = inner if isinstance(inner, Optimizer) else optimizer
    if not isinstance(optimizer, Optimizer):
        raise InvalidValue(
            f"attach() got a {type(optimizer).__name__}; give the torch optimiser of the model"
        )
    return optimizer


def _in_training(method: Method) -> InTraining:
    if not isinstance(method, InTraining):
        raise InvalidValue(
            f"{method.info.name} is of the kind {method.info.kind}, which does not work while a "
            "model trains: use prune() or the method's run(). `sparsecraft methods` lists those of "
            'the kind InTraining; Sparsifier(model, "static", source=...) trains under any mask.'
        )
    return method


def _checked_steps(steps: Any) -> int:
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise InvalidValue(
            f"total_steps={steps!r} is not allowed: give the number of optimiser steps of the "
            "whole training, at least 1; schedules are laid over it"
        )
    return steps


def _check_free(model: nn.Module, targets: Targets, parameters: Mapping[str, nn.Parameter]) -> None:
    """Raises for weights that are tied, sharded already, or under another Sparsifier."""
    from torch.distributed.tensor import DTensor

    tied = ties(model)
    for target in targets:
        parameter = parameters[target.parameter]
        if target.parameter in tied:
            raise InvalidValue(
                f"{target.parameter} is tied to {tied[target.parameter][0]}: a mask on one would "
                "change the other. Leave it out of the targets ('!name'), or untie the two."
            )
        if isinstance(parameter, DTensor):
            raise InvalidValue(
                f"{target.parameter} is sharded already: make the Sparsifier on the whole model, "
                "then call fully_shard, make the optimiser and attach"
            )
        owner = getattr(parameter, _OWNER, None)
        if owner is not None:
            raise InvalidValue(
                f"{target.parameter} is under another Sparsifier ({owner.method.info.name}): "
                "finalize or detach that one first, or choose other targets"
            )


def _share(mask: Tensor) -> float:
    return int(mask.sum()) / max(1, mask.numel())
