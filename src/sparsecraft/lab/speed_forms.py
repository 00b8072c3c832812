"""The forms of one model that `speed` times: as it was, packed dense, packed with all there is.

All of them share one set of weights; packing stores what it needs beside. A fourth form is never
timed: the model as it decodes, computed whole sequences at a time, by which quality is judged.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from sparsecraft.model.blocks import is_conv1d
from sparsecraft.model.gate_hooks import GateHook, installed
from sparsecraft.model.gating import remove
from sparsecraft.model.runtime import DecisionRecord
from sparsecraft.model.runtime.packed_linear import PackedLinear

Progress = Callable[[str, int, int], None]
Model = TypeVar("Model", bound=nn.Module)
DENSE_FORMATS = ("torch", "dense")
"""Formats that multiply by every weight."""
SPARED = 0.01
"""Share of a window, from its start, that gates may spare when quality is measured."""


def twin(model: Model) -> Model:
    """Returns a copy whose modules are its own and whose tensors are the model's."""
    tensors: Sequence[Tensor] = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def without_gates(model: Model) -> Model:
    """Returns a twin that computes with all activations; a rotation stays, it changes nothing."""
    whole = twin(model)
    remove(whole)
    return whole


def is_sparse(form: str) -> bool:
    """Returns whether the named way to compute a layer leaves out some of its weights.

    Example:
        >>> is_sparse("bitmask bfloat16"), is_sparse("dense int8")
        (True, False)
    """
    return form.partition(" ")[0] not in (*DENSE_FORMATS, "by_input")


def any_sparse(record: DecisionRecord) -> bool:
    """Returns whether any layer computes with less than all of its weights."""
    return any(is_sparse(choice.chosen) for choice in record.choices)


def as_decoded(gated: Model, packed: nn.Module) -> Model:
    """Returns a model that computes at any length what the packed one does token by token.

    A packed model computes prompts and other long inputs in another way than single tokens: whole,
    where single tokens are gated, and perhaps in another type. Its loss on whole windows would
    therefore not be that of its decoding. Here every layer has the weight that the packed one
    decodes with, rounded as it is stored, and the gates that it applies to single tokens, on every
    token but the first hundredth of a sequence, or fewer where the method spares fewer.

    Args:
        gated: The model as it was before packing, with its gates.
        packed: The packed model.
    """
    made = twin(gated)
    modules = dict(made.named_modules())
    for name, module in packed.named_modules():
        if isinstance(module, PackedLinear):
            plan = module.plan(1)
            _set_weight(modules[name], plan.weight.unpack())
            if plan.gate is None:
                _take_gate(modules[name])
    for hook in installed(made).values():
        hook.gate = dataclasses.replace(hook.gate, prefill=max(hook.gate.prefill, 1 - SPARED))
    return made


def _set_weight(module: Any, weight: Tensor) -> None:
    mine = weight.t() if is_conv1d(module) else weight
    module.weight = nn.Parameter(mine.to(module.weight.dtype), requires_grad=False)


def _take_gate(module: nn.Module) -> None:
    hooks = module._forward_pre_hooks
    for key in [key for key, hook in hooks.items() if isinstance(hook, GateHook)]:
        del hooks[key]
