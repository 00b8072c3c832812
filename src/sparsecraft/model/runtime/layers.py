"""Which modules can be packed, and why the others are left alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue, NoMatch
from sparsecraft.core.gating import ActivationGate
from sparsecraft.kernels.linear.quantise import dtype_name
from sparsecraft.model.blocks import is_conv1d
from sparsecraft.model.gate_hooks import GateHook, installed_gates
from sparsecraft.model.runtime.packed_linear import PackedLinear
from sparsecraft.model.targets import Select, find_targets

_DTYPES = (torch.float32, torch.bfloat16)
_READ_BY_PARENT = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
_HOOKS = ("_forward_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True, eq=False)
class LinearLayer:
    """A linear layer that can be packed.

    Args:
        names: Where the module stands in the model; several where it is shared.
        module: A `torch.nn.Linear` or GPT-2's Conv1D.
        gate: What gates its input, or None.
    """

    names: tuple[str, ...]
    module: nn.Module
    gate: ActivationGate | None = None

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]

    @property
    def weight(self) -> Tensor:
        """(outputs, inputs), a view of the module's own."""
        weight = self.module.get_parameter("weight").detach()
        return weight.t() if is_conv1d(self.module) else weight

    @property
    def bias(self) -> Tensor | None:
        """(outputs,), the module's own parameter, or None."""
        bias = self.module.bias
        return bias if isinstance(bias, Tensor) else None

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        return self.weight.shape[0], self.weight.shape[1]

    @property
    def dtype(self) -> str:
        """The type of its weight, "float32" or "bfloat16"."""
        return dtype_name(self.weight.dtype)

    def density(self) -> float:
        """Returns the share of its weights that are not zero."""
        return float(torch.count_nonzero(self.weight)) / math.prod(self.shape)


def find_layers(
    model: nn.Module, targets: Select = None
) -> tuple[tuple[LinearLayer, ...], dict[str, str]]:
    """Returns the layers to pack in model order, and the reason for every other matrix.

    Args:
        model: Any module.
        targets: Which ones, see `find_targets`; None takes all, the head too.

    Raises:
        InvalidValue: If the model is packed already.
        NoMatch: If there is no layer to pack.
    """
    if any(isinstance(module, PackedLinear) for module in model.modules()):
        raise InvalidValue("the model is packed already; undo() first, then pack it again")
    wanted = None
    if targets is not None:
        wanted = {target.module for target in find_targets(model, targets)}
    gates = installed_gates(model)
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    layers: list[LinearLayer] = []
    reasons: dict[str, str] = {}
    for name, module in model.named_modules():
        matrices = [p for p in module.parameters(recurse=False) if p.dim() >= 2]
        if not matrices and not _is_plain_linear(module):
            continue
        parent = model.get_submodule(name.rpartition(".")[0])
        reason = _why_not(module, parent, gates.get(name))
        if reason is None and wanted is not None and name not in wanted:
            reason = "not among the targets"
        if reason is None:
            layers.append(LinearLayer(tuple(names[id(module)]), module, gates.get(name)))
        else:
            reasons[name or type(module).__name__] = reason
    if not layers:
        listed = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:5])
        raise NoMatch(f"the model has no linear layer to pack. {listed or 'It has no matrix.'}")
    return tuple(layers), reasons


def replace_module(model: nn.Module, names: tuple[str, ...], module: nn.Module) -> None:
    """Puts a module at each of these places."""
    for name in names:
        model.set_submodule(name, module)


def _why_not(module: nn.Module, parent: nn.Module, gate: ActivationGate | None) -> str | None:
    if not _is_plain_linear(module):
        return _not_linear(module)
    if "weight" not in module._parameters or "forward" in vars(module):
        return "its weight or its forward is replaced by someone else's code"
    if isinstance(parent, _READ_BY_PARENT):
        return f"{type(parent).__name__} reads its weight itself"
    hooks = [hook for kind in _HOOKS for hook in _values(getattr(module, kind, None))]
    hooks += [h for h in _values(module._forward_pre_hooks) if not isinstance(h, GateHook)]
    if hooks:
        return "it has hooks of someone else, which a packed layer would lose"
    if gate is not None and type(gate) is not ActivationGate:
        return f"its gate is a {type(gate).__name__}, which no kernel computes; it stays masked"
    weight = module.get_parameter("weight")
    if weight.dtype not in _DTYPES:
        return f"{dtype_name(weight.dtype)} is not supported; load the model in float32 or bfloat16"
    if not bool(torch.isfinite(weight).all()):
        return "its weight has NaN or infinite values"
    return None


def _is_plain_linear(module: nn.Module) -> bool:
    return type(module).forward is nn.Linear.forward or is_conv1d(module)


def _not_linear(module: nn.Module) -> str:
    if isinstance(module, nn.Embedding):
        return "an embedding: rows are looked up, not multiplied"
    if any(parameter.dim() == 3 for parameter in module.parameters(recurse=False)) and hasattr(
        module, "num_experts"
    ):
        return "fused experts: their products are not packed"
    return f"no packed form for {type(module).__name__}"


def _values(hooks: Mapping[int, object] | None) -> list[object]:
    return list(hooks.values()) if hooks else []
