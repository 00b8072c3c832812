"""The way from a place in a model to its logits, seen in one forward pass over a few tokens.

A direction that is added to the residual stream reaches the logits past all later layers through
the last norm and the head. Names are no guide to either across architectures, but what reads whose
output is. Where the place is not on the stream, or more than a norm stands before the head, there
is no such way, and that is said.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.domains.interpretability.model_answers import device_of
from sparsecraft.model.blocks import find_blocks
from sparsecraft.model.hook_points import hook_point
from sparsecraft.model.module_calls import Calls, record_calls, same_numbers
from sparsecraft.model.rms_norm import rms_gain
from sparsecraft.model.sae.estimator import evaluating

TOKENS = 8
_ADDED = ("hook_attn_out", "hook_mlp_out", "hook_resid_mid")
"""What a block adds to the residual stream as it is, or makes of it, in families that are known."""


@dataclass(frozen=True)
class Readout:
    """What a direction of the residual stream passes on its way to the logits.

    Args:
        weights: (vocabulary, d), the head.
        gain: (d,), how the last norm scales; None where it does not, or there is none.
        centred: Whether the last norm subtracts the mean.
    """

    weights: Tensor
    gain: Tensor | None = None
    centred: bool = False


@torch.no_grad()
def find_readout(
    model: nn.Module, at: str, tokens: Tensor, width: int
) -> tuple[Readout | None, str]:
    """Returns the way from a hook point to the logits or None, and what must be known of it.

    Args:
        model: Any model; its mode is restored.
        at: Hook point to which directions are added.
        tokens: int (contexts, length) that it reads, -1 for padding.
        width: Entries of a direction.
    """
    getter: Any = getattr(model, "get_output_embeddings", None)
    head = None if getter is None else getter()
    if head is None:
        return None, "the model has no output head, so there are no effects on logits"
    reads = head.weight.shape[1]
    if reads != width:
        return None, (
            f"effects on logits are not shown: latents write {width} entries to {at}, and the "
            f"head reads {reads}, so this is not the residual stream"
        )
    ids = tokens[tokens >= 0][None, :TOKENS].long().to(device_of(model))
    try:
        with evaluating(model):
            calls = record_calls(model, {"input_ids": ids})
    except InvalidValue:
        kind = type(model).__name__
        return None, f"effects on logits are not shown: {kind} does not run on token ids alone"
    return _way(model, head, at, calls)


def _way(model: nn.Module, head: Any, at: str, calls: Calls) -> tuple[Readout | None, str]:
    blocks = _blocks(model, calls)
    on_stream = _on_stream(model, at, calls, blocks)
    if on_stream is False:
        return None, (
            f"effects on logits are not shown: {at} is not on the residual stream, which the head "
            "reads"
        )
    remarks = [] if on_stream else [f"it is not known whether {at} is on the residual stream"]
    name = next((name for name, module in model.named_modules() if module is head), "")
    read = calls[name].input if name in calls else None
    end = calls[blocks[-1]].first if blocks else None
    norm = _last_norm(model, calls, read, end)
    if norm is None and (end is None or not same_numbers(read, end)):
        return None, (
            "effects on logits are not shown: what stands between the last block and the head was "
            "not recognised as one norm"
        )
    if norm is None:
        remarks.append("no norm was found between the last block and the head")
        return Readout(head.weight.detach()), _sentence(remarks)
    gain, centred, remark = _gain(model.get_submodule(norm), norm)
    remarks += [remark] if remark else []
    return Readout(head.weight.detach(), gain, centred), _sentence(remarks)


def _blocks(model: nn.Module, calls: Calls) -> list[str]:
    """Returns the names of the blocks that hand the residual stream on, or none if not known.

    Blocks of several kinds (hybrids) are known by what they hand on to each other.
    """
    alike = list(find_blocks(model).items())
    if len(alike) == 1:
        return [name for name in _members(*alike[0]) if name in calls]
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    chains = [names for names in (_members(*each) for each in lists) if _hand_on(names, calls)]
    return chains[0] if len(chains) == 1 else []


def _members(path: str, blocks: nn.ModuleList) -> list[str]:
    return [f"{path}.{index}" for index in range(len(blocks))]


def _hand_on(names: list[str], calls: Calls) -> bool:
    """Returns whether each of two or more modules reads what the one before it gives."""
    called = all(name in calls for name in names)
    return len(names) > 1 and called and all(
        same_numbers(calls[one].first, calls[other].input)
        for one, other in pairwise(names)
    )  # fmt: skip


def _on_stream(model: nn.Module, at: str, calls: Calls, blocks: list[str]) -> bool | None:
    """Returns whether a place is the residual stream or is added to it; None: not known."""
    tensor = _at(model, at, calls)
    if not blocks or tensor is None:
        return None
    ends = [end for block in blocks for end in (calls[block].input, calls[block].first)]
    path = hook_point(model, at).path
    within = [index for index, block in enumerate(blocks) if path.startswith(f"{block}.")]
    named = [_at(model, f"blocks.{n}.{tail}", calls) for n in within for tail in _ADDED]
    if any(same_numbers(tensor, other) for other in (*ends, *named)):
        return True
    return None if within and all(other is None for other in named) else False


def _at(model: nn.Module, at: str, calls: Calls) -> Tensor | None:
    """Returns the tensor at a hook point, or None where this model has none."""
    try:
        point = hook_point(model, at)
    except (UnknownName, InvalidValue):
        return None
    call = calls.get(point.path)
    found = None if call is None else call.input if point.kind == "input" else call.first
    return found if isinstance(found, Tensor) else None


def _last_norm(model: nn.Module, calls: Calls, read: Any, end: Any) -> str | None:
    """Returns the norm that gives what the head reads, of what the blocks give, or None.

    Args:
        model: The model.
        calls: Of its modules.
        read: What the head reads.
        end: What the last block gives, or None where the blocks are not known.
    """
    for name, call in calls.items():
        from_end = end is None or same_numbers(call.input, end)
        passes = same_numbers(call.input, call.first)  # dropout at rest
        if from_end and not passes and same_numbers(call.first, read):
            return name if _may_be_norm(model.get_submodule(name)) else None
    return None


def _may_be_norm(module: nn.Module) -> bool:
    parts = next(module.children(), None)
    return parts is None and all(weight.dim() == 1 for weight in module.parameters())


def _gain(norm: nn.Module, name: str) -> tuple[Tensor | None, bool, str]:
    """Returns the gain of a norm, whether it subtracts the mean, and a remark."""
    if isinstance(norm, nn.LayerNorm):
        return norm.weight, True, ""
    try:
        found = rms_gain(norm, name)
    except InvalidValue:
        kind = type(norm).__name__
        return None, False, f"the gain of the last norm, {name} ({kind}), is not applied"
    return found.of(getattr(norm, found.parameter)), False, ""


def _sentence(remarks: list[str]) -> str:
    return f"effects on logits: {'; '.join(remarks)}" if remarks else ""
