"""AdamS: Adam whose masked weights are drawn to zero as their Sparsifier's method says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparsecraft.core.adams import Pull, Rates, adam_step_
from sparsecraft.core.errors import InvalidValue
from sparsecraft.model.sharding import local, part_of

if TYPE_CHECKING:
    from sparsecraft.model.sparsifier import Sparsifier

MASTER = "master"


class AdamS(Optimizer):
    """Adam with a pull on masked weights that its first moment never holds.

    `Sparsifier.attach` binds it; masks, the kind of pull and its strength then come from the
    method, step by step. Parameters without a mask get plain Adam. Parameters of less than 32 bits
    are stepped on a float32 copy, since neither the pull nor a small rate would move them.

    Args:
        params: Parameters or groups of them.
        lr: Learning rate.
        betas: Decay of the first and of the second moment.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled, of kept and masked weights alike.

    Raises:
        InvalidValue: If a constant is out of range; in `step` and `bind`, if no method says which
            weights are drawn to zero, or its masks do not fit.

    Example:
        >>> from sparsecraft.model.sparsifier import Sparsifier
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
        >>> optimizer = AdamS(model.parameters(), lr=0.01)
        >>> sparsifier = Sparsifier(model, "cast", total_steps=2).attach(optimizer)
        >>> for _ in range(2):
        ...     (model(torch.ones(1, 8)).square().sum() + sparsifier.loss()).backward()
        ...     optimizer.step()
        >>> sparsifier.finalize().sparsity
        0.5

    Reference:
        Huang et al., 2025, arXiv 2509.25996, algorithm 1.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise InvalidValue(f"AdamS({name}={value!r}) is not allowed: give at least 0")
        if not all(0 <= beta < 1 for beta in betas):
            raise InvalidValue(f"AdamS(betas={betas!r}) is not allowed: both lie in [0, 1)")
        self._sparsifier: Sparsifier | None = None
        self._seen: list[Tensor | None] = []
        self._keep: dict[Tensor, Tensor] = {}
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    def bind(self, sparsifier: Sparsifier) -> None:
        """Takes masks and pull from this Sparsifier from here on; its `attach` calls it.

        Raises:
            InvalidValue: If its method has no pull, a target has no mask, or a mask does not fit
                its parameter.
        """
        if not hasattr(sparsifier.method, "pull"):
            raise InvalidValue(
                f"{sparsifier.method.info.name} does not say how masked weights are drawn to zero; "
                "AdamS would be plain Adam. Use torch.optim.AdamW, or the method 'cast' or 'ast'."
            )
        self._sparsifier = sparsifier
        self._seen = []
        self._refresh(sparsifier)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Does one step, and returns what the closure did.

        Raises:
            InvalidValue: If no Sparsifier is bound, or its training is over.
        """
        if self._sparsifier is None:
            raise InvalidValue(
                "AdamS has no masks: call sparsifier.attach(optimizer) before the first step. "
                "Without a Sparsifier use torch.optim.AdamW."
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._refresh(self._sparsifier)
        pull = self._sparsifier.method.pull(  # type: ignore[attr-defined]
            self._sparsifier.layers, self._sparsifier.clock
        )
        for group in self.param_groups:
            first, second = group["betas"]
            rates = Rates(group["lr"], (first, second), group["eps"], group["weight_decay"])
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, rates, pull)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up moments, in the precision in which they were saved."""
        super().load_state_dict(state_dict)
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        mine = chain.from_iterable(group["params"] for group in self.param_groups)
        for number, parameter in zip(saved, mine, strict=True):
            # torch casts moments to the type of their parameter; these are float32 at least.
            for name, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, Tensor):
                    self.state[parameter][name] = value.detach().clone().to(parameter.device)

    def __getstate__(self) -> dict[str, Any]:
        """Returns what a copy needs; it is bound to nothing."""
        unbound: dict[str, Any] = {"_sparsifier": None, "_seen": [], "_keep": {}}
        return {**super().__getstate__(), **unbound}

    def _step(self, parameter: Tensor, rates: Rates, pull: Pull) -> None:
        state = self.state[parameter]
        if not state:
            self._begin(parameter, state)
        state["step"] += 1
        weight = self._master(parameter, state)
        adam_step_(
            weight,
            local(parameter.grad).to(weight.dtype),  # type: ignore[arg-type]
            local(state["mean"]),
            local(state["square"]),
            done=state["step"],
            rates=rates,
            keep=self._keep.get(parameter),
            pull=pull,
        )
        if weight is not local(parameter):
            local(parameter).copy_(weight)

    def _begin(self, parameter: Tensor, state: dict[str, Any]) -> None:
        if parameter.grad.is_sparse:  # type: ignore[union-attr]
            raise InvalidValue("AdamS takes no sparse gradients: make embeddings with sparse=False")
        precise = torch.promote_types(parameter.dtype, torch.float32)
        state["step"] = 0
        state["mean"] = torch.zeros_like(parameter, dtype=precise)
        state["square"] = torch.zeros_like(parameter, dtype=precise)
        if precise != parameter.dtype:
            state[MASTER] = parameter.detach().to(precise)

    def _master(self, parameter: Tensor, state: Mapping[str, Any]) -> Tensor:
        """Returns the tensor to step: the parameter, or its float32 copy brought up to date."""
        mine = local(parameter)
        if MASTER not in state:
            return mine
        precise: Tensor = local(state[MASTER])
        # Whoever wrote to the parameter since the last step is right.
        precise.copy_(torch.where(precise.to(mine.dtype) == mine, precise, mine))
        return precise

    def _refresh(self, sparsifier: Sparsifier) -> None:
        """Makes the masks by parameter anew where the Sparsifier has other ones."""
        current = [layer.mask for layer in sparsifier.layers.values()]
        if len(current) == len(self._seen) and all(map(_same, current, self._seen)):
            return
        bare = [name for name, layer in sparsifier.layers.items() if layer.mask is None]
        if bare:
            raise InvalidValue(f"{bare[0]} has no mask, so that AdamS would be plain Adam for it")
        held = set(chain.from_iterable(group["params"] for group in self.param_groups))
        parameters = dict(sparsifier.model.named_parameters(remove_duplicate=False))
        keep: dict[Tensor, Tensor] = {}
        for name, mask in sparsifier.mask.items():
            parameter = parameters[name]
            if mask.shape != parameter.shape:
                raise InvalidValue(
                    f"the mask of {name} has shape {tuple(mask.shape)}, the parameter "
                    f"{tuple(parameter.shape)}: it was reshaped or flattened after the Sparsifier "
                    "was made. Keep parameters whole (FSDP2, use_orig_params=True)."
                )
            if parameter in held:
                keep[parameter] = part_of(mask, parameter)
        self._keep, self._seen = keep, current


def _same(now: Tensor | None, before: Tensor | None) -> bool:
    return now is before
