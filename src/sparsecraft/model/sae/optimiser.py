"""Adam for dictionaries: clip, projection, step and norm of each row in one pass over the weights.

A dictionary whose rows have norm one is trained with the gradient that does not change the norm;
done one after another, the four operations each read the whole dictionary and make copies of it.
States have the names of `torch.optim.Adam` and can be exchanged with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue
from sparsecraft.kernels.codes.adam import AdamStep, adam_step

CLIP_EPS = 1e-6


class DictionaryAdam(torch.optim.Optimizer):
    """Adam that keeps the rows of parameter groups with `unit_rows=True` at norm one.

    Without such groups it is Adam; entries whose gradient is zero move by their moments all the
    same. A learning-rate scheduler works as usual.

    Args:
        params: Parameters, or groups of them.
        lr: Learning rate.
        betas: Decays of the moments.
        eps: Added to the root of the second moment.
        max_norm: What the norm of all gradients together is clipped to, before anything else;
            None: nothing.

    Raises:
        InvalidValue: If a number is not allowed, or `unit_rows` is given for what is no matrix.

    Example:
        >>> atoms, bias = torch.nn.Parameter(torch.eye(2)), torch.nn.Parameter(torch.zeros(2))
        >>> groups = [{"params": [atoms], "unit_rows": True}, {"params": [bias]}]
        >>> optimizer = DictionaryAdam(groups, lr=0.1)
        >>> (atoms.sum() + bias.sum()).backward()
        >>> optimizer.step()
        >>> torch.allclose(atoms.norm(dim=1), torch.ones(2))
        True

    Reference:
        Kingma and Ba, 2014, arXiv 1412.6980; Gao et al., 2024, arXiv 2406.04093, appendix A.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        max_norm: float | None = None,
    ) -> None:
        _check(lr, betas, eps, max_norm)
        self.max_norm = max_norm
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "unit_rows": False})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters; see torch.optim.Optimizer."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for parameter in group["params"]:
            if group["unit_rows"] and parameter.dim() != 2:
                self.param_groups.pop()
                raise InvalidValue(
                    f"unit_rows=True needs matrices (atoms, width); a parameter of shape "
                    f"{tuple(parameter.shape)} was given. Put it into a group without unit_rows."
                )

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], float] | None = None, *, scale: float = 1.0
    ) -> float | None:
        """Changes the parameters by one step.

        Args:
            closure: Computes the loss again, as for every optimiser of torch.
            scale: What gradients are multiplied with, for a clip that was decided outside.

        Returns:
            The closure's loss, if there is one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scale *= self._clip()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group, scale)
        return loss

    def _step(
        self, parameter: Tensor, gradient: Tensor, group: dict[str, Any], scale: float
    ) -> None:
        state = self._state_of(parameter)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        adam_step(
            parameter,
            gradient,
            state["exp_avg"],
            state["exp_avg_sq"],
            AdamStep(float(group["lr"]), int(state["step"]), beta1, beta2, group["eps"], scale),
            unit_rows=group["unit_rows"],
        )

    def _state_of(self, parameter: Tensor) -> dict[str, Any]:
        """Returns the moments, laid in memory as the parameter is (a loaded state may not be)."""
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        for name in ("exp_avg", "exp_avg_sq"):
            if state[name].stride() != parameter.stride():
                state[name] = torch.empty_like(parameter).copy_(state[name])
        return state

    def _clip(self) -> float:
        if self.max_norm is None:
            return 1.0
        parameters = [p for group in self.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        return min(1.0, self.max_norm / (norm + CLIP_EPS))


def _check(lr: float, betas: tuple[float, float], eps: float, max_norm: float | None) -> None:
    if not float(lr) >= 0:
        raise InvalidValue(f"lr={lr!r} is not allowed: give a number of at least 0")
    if not all(0 <= beta < 1 for beta in betas):
        raise InvalidValue(f"betas={betas!r} are not allowed: give two numbers in [0, 1)")
    if not eps >= 0:
        raise InvalidValue(f"eps={eps!r} is not allowed: give a number of at least 0")
    if max_norm is not None and not max_norm > 0:
        raise InvalidValue(f"max_norm={max_norm!r} is not allowed: give a number above 0, or None")
