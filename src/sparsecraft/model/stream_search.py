"""Finds the residual stream of a decoder by following a forward pass, not by names of modules.

A block is first norm, attention, second norm, MLP, in the order in which they run. A layer reads
the stream if its input is the norm's very output, and writes to it if its output is that of the
sub-layer. Which reader gives the keys, and which the gate, `stream_roles` finds. Whatever does not
fit is named, with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.model.blocks import find_blocks
from sparsecraft.model.module_calls import Batch, Call, Calls, record_calls, same_numbers
from sparsecraft.model.residual_stream import Part, Stream, Sublayer
from sparsecraft.model.rms_norm import rms_gain
from sparsecraft.model.rotated_block import pre_norm
from sparsecraft.model.stream_roles import gate_of, key_of
from sparsecraft.model.units import evaluating


@torch.no_grad()
def find_stream(model: nn.Module, batch: Batch) -> Stream:
    """Returns the residual stream of a pre-norm decoder with RMS norms.

    Args:
        model: Any module; it is run a few times in evaluation mode and left as it was.
        batch: Keyword arguments of its forward: `input_ids` (1, tokens) of some tokens.

    Raises:
        InvalidValue: With the module that does not fit, and the reason.
    """
    with evaluating(model):
        calls = record_calls(model, batch)
        name, blocks = _only_blocks(model)
        names = [f"{name}.{index}" for index in range(len(blocks))]
        orders = [_sublayers(model, block, calls) for block in names]
        if len(set(orders)) > 1:
            raise _refused(name, "its blocks are not built alike")
        _check_block(model, names[0], orders[0], calls)
        shorter = [record_calls(model, _cut(batch, tokens)) for tokens in (1, 2)]
        found = tuple(
            (
                block,
                _attention(model, block, order, calls, shorter),
                _mlp(model, block, order, calls),
            )
            for block, order in zip(names, orders, strict=True)
        )
        norm, heads = _end(model, names[-1], calls)
        gain = rms_gain(model.get_submodule(norm), norm)
    width = calls[norm].first.shape[-1]
    return Stream(width, _embeddings(model, name, width, calls), found, norm, gain, heads)


def _only_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    found = find_blocks(model)
    if len(found) != 1:
        raise _refused(type(model).__name__, f"it has {len(found)} lists of blocks, not one")
    return next(iter(found.items()))


def _sublayers(model: nn.Module, block: str, calls: Calls) -> tuple[str, ...]:
    """Returns the names of first norm, attention, second norm and MLP inside a block."""
    children = {
        name: child
        for name, child in model.get_submodule(block).named_children()
        if not _does_nothing(child)
    }
    order = tuple(name for full in calls if (name := _child(full, block)) in children)
    known = len(order) == 4
    inside = children.items() if known else model.get_submodule(block).named_modules()
    for name, child in inside:
        if isinstance(child, nn.LayerNorm):
            rms_gain(child, f"{block}.{name}")
    if not known:
        raise _refused(block, f"it runs {', '.join(order)}, not norm, attention, norm and MLP")
    return order


def _check_block(model: nn.Module, name: str, order: Sequence[str], calls: Calls) -> None:
    """Raises unless the block computes two plain residual sums and nothing else."""
    block, call = model.get_submodule(name), calls[name]
    plain = (lambda x: x, lambda x: x)
    known = {k: v for k, v in call.kwargs.items() if k != "hidden_states"}
    try:
        given = pre_norm(block, order, call.input, known, plain) if len(call.args) <= 1 else None
    except (TypeError, RuntimeError):
        # What runs second takes other arguments than an attention, for example.
        given = None
    if not isinstance(call.output, Tensor) or given is None or not torch.equal(given, call.output):
        raise _refused(
            name, "it is not the plain pre-norm block x + attention(norm(x)), h + mlp(norm(h))"
        )


def _attention(
    model: nn.Module, block: str, order: Sequence[str], calls: Calls, shorter: Sequence[Calls]
) -> Sublayer:
    norm, name = (f"{block}.{order[index]}" for index in (0, 1))
    readers, writers = _linears(model, norm, name, calls)
    runs = [partial(_again, model.get_submodule(name), found[name]) for found in shorter]
    key = key_of({each: model.get_submodule(each) for each in readers}, runs[0], runs[1], name)
    return _plain_sublayer(model, norm, name, readers, writers, key)


def _mlp(model: nn.Module, block: str, order: Sequence[str], calls: Calls) -> Sublayer:
    norm, name = (f"{block}.{order[index]}" for index in (2, 3))
    if any(hasattr(module, "num_experts") for module in model.get_submodule(name).modules()):
        return _experts(model, norm, name, calls)
    readers, writers = _linears(model, norm, name, calls)
    again = partial(_again, model.get_submodule(name), calls[name])
    gate = gate_of({each: model.get_submodule(each) for each in readers}, again, name)
    return _plain_sublayer(model, norm, name, readers, writers, gate)


def _linears(model: nn.Module, norm: str, name: str, calls: Calls) -> tuple[list[str], list[str]]:
    """Returns the linear layers that read the normed stream, and the one that writes to it."""
    readers, writers = [], []
    for full, module in model.get_submodule(name).named_modules(prefix=name):
        holds = any(True for _ in module.parameters(recurse=False))
        if not holds:
            continue
        if full not in calls:
            raise _refused(full, "it did not run in a forward pass")
        reads, writes = (
            same_numbers(calls[full].input, calls[norm].first),
            same_numbers(calls[full].first, calls[name].first),
        )
        if (reads or writes) and not isinstance(module, nn.Linear):
            raise _refused(full, f"a {type(module).__name__} reads or writes the residual stream")
        readers += [full] if reads else []
        writers += [full] if writes else []
    if not readers or len(writers) != 1:
        raise _refused(name, "no linear layers were found that read its input and give its output")
    return readers, writers


def _plain_sublayer(
    model: nn.Module,
    norm: str,
    name: str,
    readers: Sequence[str],
    writers: Sequence[str],
    pivot: str,
) -> Sublayer:
    biased = [
        each for each in writers if getattr(model.get_submodule(each), "bias", None) is not None
    ]
    return Sublayer(
        name,
        norm,
        rms_gain(model.get_submodule(norm), norm),
        readers=tuple(f"{each}.weight" for each in readers),
        writers=tuple(f"{each}.weight" for each in writers),
        biases=tuple(f"{each}.bias" for each in biased),
        pivot=Part(f"{pivot}.weight"),
    )


def _experts(model: nn.Module, norm: str, name: str, calls: Calls) -> Sublayer:
    """Returns an MLP of stacked experts with a router; their gates together are the pivot."""
    readers, writers, biases = [], [], []
    pivot = None
    for full, module in model.get_submodule(name).named_modules(prefix=name):
        own = dict(module.named_parameters(recurse=False))
        if not own:
            continue
        if not (full in calls and same_numbers(calls[full].input, calls[norm].first)):
            raise _refused(full, "beside the experts and their router it is not known")
        if set(own) == {"weight"}:
            readers.append(f"{full}.weight")
        elif {"gate_up_proj", "down_proj"} <= set(own) and not getattr(
            module, "is_transposed", False
        ):
            readers.append(f"{full}.gate_up_proj")
            writers.append(f"{full}.down_proj")
            biases += [f"{full}.{each}" for each in own if each == "down_proj_bias"]
            pivot = Part(f"{full}.gate_up_proj", rows=own["gate_up_proj"].shape[1] // 2)
        else:
            raise _refused(full, f"the parameters {', '.join(own)} of its experts are not known")
    if pivot is None:
        raise _refused(name, "its experts are not stacked in one parameter")
    gain = rms_gain(model.get_submodule(norm), norm)
    return Sublayer(name, norm, gain, tuple(readers), tuple(writers), tuple(biases), pivot)


def _end(model: nn.Module, last: str, calls: Calls) -> tuple[str, tuple[str, ...]]:
    """Returns the last norm, and the weights of the linear layers that read it."""
    norms = [n for n, c in calls.items() if n != last and same_numbers(c.input, calls[last].first)]
    norms = [n for n in norms if not n.startswith(f"{last}.") and not _has_children(model, n)]
    if len(norms) != 1:
        raise _refused(last, "what reads the stream after the last block is not one norm")
    heads = [
        name
        for name, call in calls.items()
        if isinstance(model.get_submodule(name), nn.Linear)
        and same_numbers(call.input, calls[norms[0]].first)
    ]
    if not heads:
        raise _refused(
            type(model).__name__,
            "no linear head reads the stream after its last norm, so nothing would turn its output "
            "back. Load the model with its head",
        )
    return norms[0], tuple(f"{name}.weight" for name in heads)


def _embeddings(model: nn.Module, blocks: str, width: int, calls: Calls) -> tuple[str, ...]:
    found = [
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and module.embedding_dim == width and name in calls
    ]
    if not found or any(name.startswith(f"{blocks}.") for name in found):
        raise _refused(type(model).__name__, "the embeddings that begin its stream were not found")
    return tuple(found)


def _again(module: nn.Module, call: Call) -> Tensor:
    given = module(*call.args, **call.kwargs)
    return given[0] if isinstance(given, tuple) else given


def _cut(batch: Batch, tokens: int) -> dict[str, Any]:
    return {k: v[:1, :tokens] if isinstance(v, Tensor) else v for k, v in batch.items()}


def _child(full: str, block: str) -> str:
    return full.removeprefix(f"{block}.") if full.startswith(f"{block}.") else ""


def _does_nothing(module: nn.Module) -> bool:
    return isinstance(module, nn.Identity) or (isinstance(module, nn.Dropout) and module.p == 0)


def _has_children(model: nn.Module, name: str) -> bool:
    return next(model.get_submodule(name).children(), None) is not None


def _refused(name: str, reason: str) -> InvalidValue:
    return InvalidValue(
        f"{name} cannot be rotated: {reason}. Use the method without the rotation "
        "(transform=False, --no-rotation)."
    )
