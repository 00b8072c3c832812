"""A linear layer that computes with packed weights, one way for each number of rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.kernels.linear import ByInput, Gate, WeightFormat


@dataclass(frozen=True, eq=False)
class Plan:
    """How to compute for about so many rows.

    Args:
        rows: The number of rows that it was measured for.
        weight: The stored weight.
        gate: Which inputs of a row are read, for one row; None for all.
        error: Relative error of the layer's output with it.
    """

    rows: int
    weight: WeightFormat
    gate: Gate | None = None
    error: float = 0.0

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Returns (rows, outputs) for x of (rows, inputs); a gate applies to one row alone."""
        if self.gate is not None and x.shape[0] == 1 and isinstance(self.weight, ByInput):
            return self.weight.multiply_gated(x, self.gate, bias)
        return self.weight.multiply(x, bias)


class PackedLinear(nn.Module):
    """Takes the place of a linear layer; made by `pack`, for inference.

    The plan measured for the nearest number of rows (by ratio) is taken. The state dict has the
    keys of the layer that it replaced; the weight in it is the one that is computed with: rounded,
    where the format rounds. Moving the model to another type leaves packed weights as they are.

    Args:
        plans: At least one; equal numbers of rows are not allowed.
        bias: (outputs,), or None.
        transposed: Whether the layer it replaces holds its weight as (inputs, outputs).
    """

    def __init__(
        self, plans: Sequence[Plan], bias: nn.Parameter | None, *, transposed: bool = False
    ) -> None:
        super().__init__()
        self.plans = tuple(sorted(plans, key=lambda plan: plan.rows))
        self.bias = bias
        self.transposed = transposed
        self.out_features, self.in_features = self.plans[0].weight.shape
        # A gate is for one row alone: more rows begin with the next plan, where there is one.
        self._limits = tuple(
            1.0 if plan.gate is not None else math.sqrt(plan.rows * after.rows)
            for plan, after in zip(self.plans, self.plans[1:], strict=False)
        )

    @property
    def weight(self) -> Tensor:
        """The most exact of the stored weights, unpacked anew at each call; in no optimiser."""
        best = min(self.plans, key=lambda plan: plan.error).weight.unpack()
        return best.t() if self.transposed else best

    def plan(self, rows: int) -> Plan:
        """Returns what is computed for so many rows."""
        for plan, limit in zip(self.plans, self._limits, strict=False):
            if rows <= limit:
                return plan
        return self.plans[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Returns (..., outputs) for x of (..., inputs)."""
        rows = x.reshape(-1, self.in_features)
        product = self.plan(rows.shape[0]).product(rows, self.bias)
        return product.view(*x.shape[:-1], self.out_features)

    def stores(self) -> list[WeightFormat]:
        """Returns what is held in memory, each once."""
        return list({id(plan.weight): plan.weight for plan in self.plans}.values())

    def extra_repr(self) -> str:
        """Returns what each number of rows is computed with."""
        chosen = ", ".join(
            f"{plan.rows}: {'gated' if plan.gate else plan.weight.name} {plan.weight.dtype}"
            for plan in self.plans
        )
        return f"{self.in_features}, {self.out_features}, rows {{{chosen}}}"

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        destination[f"{prefix}weight"] = self.weight
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        raise InvalidValue(
            f"{prefix.rstrip('.')} is packed and takes no new weights: undo() the packing, load "
            "them, and pack again"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLinear:
        """Lets a change of type pass by, and refuses to leave the device that was measured."""
        here = self.plans[0].weight.device
        if fn(torch.empty(0, device=here)).device != here:
            raise InvalidValue(
                f"a packed model stays on {here}, where it was measured: undo() the packing, move "
                "the model, and pack it again"
            )
        return self
