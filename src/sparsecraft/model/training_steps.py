"""What happens around each step of the optimiser while a model is made sparse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from sparsecraft.core.errors import InvalidValue, NonFinite
from sparsecraft.core.kinds import Tensors
from sparsecraft.model.frozen import HeldMask, clear_moments
from sparsecraft.model.input_watch import InputWatch
from sparsecraft.model.ranks import any_rank, of_first_rank
from sparsecraft.model.sharding import gathered, local, part_of, whole, write
from sparsecraft.model.trained_model import TrainedModel


class Steps:
    """The hooks of an optimiser, from `attach` to `remove`.

    Args:
        trained: The training.
        optimizer: What steps it.
        watch: Gathers statistics of inputs, where the method wants any.
        computed: Names of the parameters that a forward pass has replaced so far.
    """

    def __init__(
        self,
        trained: TrainedModel,
        optimizer: Optimizer,
        watch: InputWatch | None,
        computed: set[str],
    ) -> None:
        self.trained, self.optimizer = trained, optimizer
        self._watch, self._computed = watch, computed
        self._held: HeldMask | None = None
        self._previous: Tensors | None = None
        self.hold()
        trained.rate = self.rate()
        self._handles: list[RemovableHandle] = [
            optimizer.register_step_pre_hook(lambda _, args, kwargs: self.before(args, kwargs)),
            optimizer.register_step_post_hook(lambda *_: self.after()),
        ]

    def hold(self) -> None:
        """Holds the present masks of frozen weights, in place of those held so far."""
        trained = self.trained
        mask = trained.mask
        if trained.method.masked_weights != "frozen" or not mask:
            return
        if self._held is not None:
            self._held.replace(mask)
            return
        parameters = trained.named_parameters
        self._held = HeldMask(
            {name: parameters[name] for name in mask},
            mask,
            self.optimizer,
            lambda: trained.method.dense_gradients and trained.method.due(trained.clock),
        )

    def remove(self) -> None:
        """Takes all hooks away; masked weights train again."""
        while self._handles:
            self._handles.pop().remove()
        if self._held is not None:
            self._held.remove()

    def rate(self) -> float:
        """Returns the learning rate of the first targeted parameter."""
        _, first = next(self.trained.pairs())
        for group in self.optimizer.param_groups:
            if any(parameter is first for parameter in group["params"]):
                return float(group["lr"])
        return float(self.optimizer.param_groups[0]["lr"])

    @torch.no_grad()
    def before(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Checks that the step may happen, and lets the method edit the gradients.

        Raises:
            InvalidValue: For a closure, a step beyond the last, or a silent transform.
            NonFinite: For a gradient that is NaN or infinite.
        """
        trained = self.trained
        self._check_call(args, kwargs)
        self._check_gradients()
        if trained.overrides("forward") and trained.step == 0:
            self._check_computed()
        trained.rate = self.rate()
        if trained.overrides("edit_gradient"):
            self._edit_gradients()
        if self._held is not None:
            self._held.clear_gradients()
        trained.own.before_step()
        if trained.units is not None and trained.method.keeps_previous(trained.clock):
            parameters = trained.named_parameters
            self._previous = {name: whole(p).clone() for name, p in parameters.items()}

    @torch.no_grad()
    def after(self) -> None:
        """Lets the method change weights, groups and masks, and moves the clock on."""
        trained = self.trained
        if trained.overrides("after_step") and trained.method.after_step_due(trained.clock):
            self._after_step()
        if trained.units is not None:
            self._step_units()
        trained.own.step(trained.rate)
        if self._held is not None:
            self._held.clear_weights()
        changed, dense = 0, False
        if trained.method.due(trained.clock):
            changed, dense = self._update_masks(), trained.method.dense_gradients
        trained.step += 1
        trained.log(changed, dense)
        for layer in trained.layers.values():
            layer.cache.clear()

    def _edit_gradients(self) -> None:
        trained = self.trained
        for target, parameter in trained.pairs():
            if parameter.grad is None:
                continue
            total = whole(parameter.grad)
            seen = target.view(total)
            layer, weight = trained.layers[target.name], target.view(whole(parameter))
            edited = trained.method.edit_gradient(weight, seen, layer, trained.clock)
            if edited is not seen:
                seen.copy_(edited)
            write(parameter.grad, total)

    def _after_step(self) -> None:
        trained = self.trained
        for target, parameter in trained.pairs():
            total = whole(parameter)
            seen = target.view(total)
            layer = trained.layers[target.name]
            stepped = trained.method.after_step(seen, layer, trained.clock)
            if stepped is not seen:
                seen.copy_(stepped)
            write(parameter, total)

    def _step_units(self) -> None:
        trained, parameters = self.trained, self.trained.named_parameters
        seen = {name: whole(p) for name, p in parameters.items()}
        cleared = trained.method.step_units(
            trained.units, seen, self._previous, trained.model_state, trained.clock
        )
        self._previous = None
        for name, value in seen.items():
            write(parameters[name], value)
        for name, gone in cleared.items():
            parameter = parameters[name]
            clear_moments(self.optimizer, parameter, part_of(gone, parameter))

    def _update_masks(self) -> int:
        """Returns how many entries the new masks change."""
        trained = self.trained
        statistics = {} if self._watch is None else self._watch.values()
        for name, layer in trained.layers.items():
            layer.statistics = statistics.get(name, {})
        found = trained.method.update_masks(
            trained.shown(), self._gradients(), trained.layers, trained.clock
        )
        changed = 0
        for name, mask in of_first_rank(found).items():
            before = trained.layers[name].mask
            old = torch.ones_like(mask) if before is None else before
            changed += int((old != mask).sum())
            trained.layers[name].mask = mask
            ever, always = trained.active.get(name, (old, old))
            trained.active[name] = (ever | mask, always & mask)
        if found:
            self.hold()
        return changed

    def _gradients(self) -> dict[str, Tensor]:
        """Returns the gradients of this step, whole; of pruned weights too where collected."""
        dense: dict[str, Tensor] = {}
        if self._held is not None and self._held.dense:
            collected, self._held.dense = self._held.dense, {}
            dense = gathered(collected, self.trained.named_parameters)
        found: dict[str, Tensor] = {}
        for target, parameter in self.trained.pairs():
            if parameter.grad is None:
                continue
            total = whole(parameter.grad)
            if target.parameter in dense:
                total = total + dense[target.parameter]
            found[target.name] = target.view(total)
        return found

    def _check_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if any(callable(each) for each in args[1:]) or kwargs.get("closure") is not None:
            raise InvalidValue(
                "the optimiser is stepped with a closure, inside which gradients cannot be edited: "
                "use one that steps without"
            )
        trained = self.trained
        if trained.step >= trained.total_steps:
            raise InvalidValue(
                f"step {trained.step + 1} is beyond total_steps={trained.total_steps}: the "
                "schedule is over. Finalize, or make the Sparsifier with the real number of "
                "optimiser steps."
            )

    def _check_gradients(self) -> None:
        groups = self.optimizer.param_groups
        held = [p.grad for group in groups for p in group["params"]]
        found = [local(g) for g in (*held, *(p.grad for p in self.trained.own)) if g is not None]
        if not found:
            raise InvalidValue("no parameter has a gradient: call backward() before step()")
        device = found[0].device
        norms = [norm.to(device, torch.float32) for norm in torch._foreach_norm(found)]
        if any_rank(not bool(torch.isfinite(torch.stack(norms).sum())), device):
            raise NonFinite(
                f"the gradient of step {self.trained.step + 1} is NaN or infinite (the loss is, or "
                "overflows). Weights, moments and masks are as they were before this step."
            )

    def _check_computed(self) -> None:
        for target, parameter in self.trained.pairs():
            if parameter.grad is not None and target.parameter not in self._computed:
                raise InvalidValue(
                    f"{target.parameter} trains, but its module was never called, so that "
                    f"{self.trained.method.info.name} could not take part. Either another module "
                    "reads its weight: leave it out of the targets. Or the model ran compiled "
                    "before: make the Sparsifier first, or call torch._dynamo.reset()."
                )
