"""Forms of a model that cost less: torch's own int8, and zeros left out on disk."""

from __future__ import annotations

import io
import warnings

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.mask import Mask


class NotHere(InvalidValue):
    """An arm cannot be made with this model or on this machine; the message says why."""


def quantise(model: nn.Module) -> nn.Module:
    """Returns the model with torch's own dynamic int8 in place of every linear layer.

    Raises:
        NotHere: If this torch has no engine for it.
    """
    try:
        from torch.ao.quantization import quantize_dynamic

        with warnings.catch_warnings():
            # Its successor is another package; what is measured is what torch itself brings.
            warnings.simplefilter("ignore")
            quantised = quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8).eval()
    except (ImportError, RuntimeError, NotImplementedError) as error:
        line = str(error).splitlines()[0]
        raise NotHere(f"torch has no dynamic int8 on this machine: {line}") from error
    if not any(True for _ in quantised.parameters()):
        # Code that asks a model's first parameter for its device must find one.
        quantised.register_parameter("no_weights", nn.Parameter(torch.empty(0), False))
    return quantised


def state_size(model: nn.Module) -> int:
    """Returns the bytes of the model's state dict as torch saves it, for quantised models."""
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.tell()


def plain_size(model: nn.Module) -> int:
    """Returns the bytes of the model's tensors, those that share memory once."""
    return sum(t.numel() * t.element_size() for t in _unshared(model.state_dict()).values())


def packed_size(model: nn.Module, mask: Mask) -> int:
    """Returns the bytes of the model's tensors in the packed form, without the file's header.

    Every masked tensor is a bit for each entry and the values that are kept, where that is smaller.
    """
    total = 0
    for name, tensor in _unshared(model.state_dict()).items():
        size = tensor.numel() * tensor.element_size()
        if name in mask:
            kept = int(mask[name].sum()) * tensor.element_size()
            size = min(size, (tensor.numel() + 7) // 8 + kept)
        total += size
    return total


def _unshared(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors by name, those that share memory once."""
    first: dict[tuple[int, int], str] = {}
    for name, tensor in state.items():
        first.setdefault((tensor.data_ptr(), tensor.numel()), name)
    return {name: state[name] for name in first.values()}
