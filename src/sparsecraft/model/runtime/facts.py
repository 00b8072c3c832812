"""What a decision about a layer rests on: its zeros, its gate, and its exact output."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from sparsecraft.core.gating import ActivationGate
from sparsecraft.kernels.linear import ByInput, Gate, WeightFormat
from sparsecraft.model.runtime.candidates import Candidate
from sparsecraft.model.runtime.layers import LinearLayer

_WORTH = 0.25
_GATED_ROWS = 8


@dataclass(eq=False)
class LayerFacts:
    """A layer with rows of its input.

    Args:
        layer: The layer.
        inputs: (rows, inputs), before the gate.
        gate: The gate of its input as kernels take it; where a quarter of the inputs or more are
            zero anyway (after a ReLU, after CATS), a gate that passes over the zeros.
        natural: Whether the gate only passes over zeros, so that nothing is lost by it.
        kept: Mean share of the inputs that the gate keeps, None without one.
        density: Share of the weights that are not zero.
    """

    layer: LinearLayer
    inputs: Tensor
    gate: Gate | None = None
    natural: bool = False
    kept: float | None = None
    density: float = 1.0
    errors: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, layer: LinearLayer, inputs: Tensor) -> LayerFacts:
        """Returns the facts of a layer."""
        density = layer.density()
        if layer.gate is not None:
            gate = kernel_gate(layer.gate)
            kept = float(gate.mask(inputs).float().mean())
            return cls(layer, inputs, gate, False, kept, density)
        kept = float(torch.count_nonzero(inputs)) / inputs.numel()
        if 1 - kept >= _WORTH:
            return cls(layer, inputs, Gate(threshold=0.0), True, kept, density)
        return cls(layer, inputs, density=density)

    @property
    def likeness(self) -> tuple[object, ...]:
        """What layers that share one measurement have in common."""
        layer, gate = self.layer, self.gate
        rule = None if gate is None else (gate.keep is None, gate.norms is None)
        share = None if self.kept is None else round(self.kept * 20)
        has_bias = layer.bias is not None
        return layer.shape, layer.dtype, has_bias, round(self.density * 20), rule, share

    @cached_property
    def exact(self) -> Tensor:
        """The layer's output without gate and bias, float32, (rows, outputs)."""
        return self.inputs.float() @ self.layer.weight.float().t()

    def error(self, candidate: Candidate, store: WeightFormat) -> float:
        """Returns ||y - y_float32|| / ||y_float32||, without bias, kept for the next call.

        A gated product is compared with the float32 product of the gated input.
        """
        if candidate.name not in self.errors:
            self.errors[candidate.name] = self._error(candidate, store)
        return self.errors[candidate.name]

    @torch.no_grad()
    def _error(self, candidate: Candidate, store: WeightFormat) -> float:
        if candidate.format == "gated" and self.gate is not None and isinstance(store, ByInput):
            rows = self.inputs[-_GATED_ROWS:]
            got = torch.cat([store.multiply_gated(row, self.gate) for row in rows.split(1)])
            masked = rows.float().masked_fill(~self.gate.mask(rows), 0)
            wanted = masked @ self.layer.weight.float().t()
        else:
            got, wanted = store.multiply(self.inputs), self.exact
        distance = (got.float() - wanted).norm()
        size = wanted.norm()
        return float(distance / size) if size > 0 else float(distance)


def kernel_gate(gate: ActivationGate) -> Gate:
    """Returns the rule of a gate as the kernels take it, for one token."""
    norms = None if gate.norms is None else gate.norms.detach().float().contiguous()
    return Gate(threshold=gate.threshold, keep=gate.keep, norms=norms)
