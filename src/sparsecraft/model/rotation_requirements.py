"""What a model must be before it can be rotated, and the tokens that its structure is seen with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.seeds import generator
from sparsecraft.model.gate_hooks import installed
from sparsecraft.model.residual_stream import Stream
from sparsecraft.model.rotated_block import rotated_blocks

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_TOKENS = 16
# A dense model has next to no weights that are exactly zero; a pruned one has many.
_PRUNED = 0.1


def check_rotatable(model: nn.Module) -> None:
    """Raises InvalidValue if a model is rotated, gated or quantised, or not on one device."""
    if rotated_blocks(model):
        raise InvalidValue(
            f"this {type(model).__name__} is rotated already; undo that rotation, or use the "
            "method without another (transform=False, --no-rotation)"
        )
    if installed(model):
        raise InvalidValue(
            f"this {type(model).__name__} has gates, which were fitted in its present basis: take "
            "them out with undo(), rotate, and gate again"
        )
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(devices) > 1 or devices == ["meta"]:
        raise InvalidValue(
            f"the model lies on {', '.join(devices)}; a rotation needs all of it on one device, "
            "with its weights loaded"
        )
    found = quantised(model)
    if found:
        raise InvalidValue(
            f"a quantised model cannot be rotated ({found}): its weights are rounded to a grid "
            "that the rotation would leave. Rotate first, then quantise; or use the method without "
            "the rotation (transform=False, --no-rotation)."
        )


def check_unpruned(model: nn.Module, stream: Stream) -> None:
    """Raises InvalidValue if matrices of the stream are pruned: a rotation would fill them."""
    zeros = total = 0
    for _, *sublayers in stream.blocks:
        for name in (name for each in sublayers for name in (*each.readers, *each.writers)):
            weight = model.get_parameter(name)
            zeros += int((weight == 0).sum())
            total += weight.numel()
    if zeros > _PRUNED * total:
        raise InvalidValue(
            f"the model is pruned: {zeros / total:.0%} of its blocks' weights are zero, and a "
            "rotation would fill them. Use the method without the rotation (transform=False, "
            "--no-rotation), or rotate the dense model and prune after that."
        )


def example_ids(model: nn.Module) -> dict[str, Tensor]:
    """Returns `input_ids` (1, 16), drawn from the whole vocabulary.

    Raises:
        InvalidValue: If the model embeds no tokens.
    """
    embedding = next((m for m in model.modules() if isinstance(m, nn.Embedding)), None)
    if embedding is None:
        raise InvalidValue(
            f"{type(model).__name__} embeds no tokens: it is no language model, and cannot be "
            "rotated. Use the method without the rotation (transform=False, --no-rotation)."
        )
    shape = (1, _TOKENS)
    drawn = torch.randint(embedding.num_embeddings, shape, generator=generator(0, "rotation"))
    return {"input_ids": drawn.to(embedding.weight.device)}


def quantised(model: nn.Module) -> str:
    """Returns what shows that the model is quantised, or nothing."""
    config: Any = getattr(model, "config", None)
    if getattr(config, "quantization_config", None) is not None:
        return "its config has a quantization_config"
    for name, module in model.named_modules():
        if ".quantized" in type(module).__module__:
            return f"{name} is a {type(module).__name__}"
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        # Masks and positions are bool and int64, and no weights.
        if tensor.dim() >= 2 and tensor.dtype not in (*_FLOATS, torch.bool, torch.int64):
            return f"{name} is {tensor.dtype}"
    return ""
