"""What the layers of a model are given, so that errors and gates are those of real inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue, NonFinite
from sparsecraft.core.seeds import generator
from sparsecraft.model.runtime.layers import LinearLayer

Batch = Mapping[str, Any]
ROWS = 32
_TOKENS = 2 * ROWS


def layer_inputs(
    model: nn.Module, layers: Sequence[LinearLayer], example: Batch | None
) -> tuple[dict[str, Tensor], str]:
    """Returns up to 32 rows of each layer's input, before its gate, and where they come from.

    Args:
        model: The model, run once in evaluation mode.
        layers: The layers.
        example: Keyword arguments of the forward pass. None draws random tokens or pixels where
            the model's config says their number, and else gives every layer normal inputs.

    Raises:
        InvalidValue: If the model does not take the example.
        NonFinite: If an input of a layer is NaN or infinite.
    """
    batch, origin = (example, "the example given") if example is not None else _drawn(model)
    seen: dict[str, Tensor] = {}
    if batch is not None:
        try:
            seen = _recorded(model, layers, batch)
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            if example is not None:
                raise InvalidValue(f"the model does not take the example: {error}") from error
            origin = f"normal numbers, the model does not run on {origin}; give example=..."
    missing = [layer for layer in layers if layer.name not in seen]
    if missing and seen:
        origin += f"; normal numbers for {len(missing)} layers that it did not reach"
    for layer in missing:
        draws = torch.randn(ROWS, layer.shape[1], generator=generator(0, "inputs", layer.name))
        seen[layer.name] = draws.to(layer.weight)
    for name, x in seen.items():
        if not bool(torch.isfinite(x).all()):
            raise NonFinite(f"the input of {name} has NaN or infinite values on {origin}")
    return seen, origin


def _drawn(model: nn.Module) -> tuple[Batch | None, str]:
    config: Any = getattr(model, "config", None)
    device = next(model.parameters()).device
    stream = generator(0, "example")
    if getattr(config, "image_size", None) and getattr(config, "num_channels", None):
        size = config.image_size
        height, width = size if isinstance(size, list | tuple) else (size, size)
        pixels = torch.randn(1, config.num_channels, height, width, generator=stream)
        return {"pixel_values": pixels.to(next(model.parameters()))}, "random pixels"
    vocabulary = getattr(config, "vocab_size", None)
    if vocabulary:
        length = min(_TOKENS, getattr(config, "max_position_embeddings", None) or _TOKENS)
        ids = torch.randint(vocabulary, (1, length), generator=stream)
        return {"input_ids": ids.to(device)}, "random tokens"
    return None, "normal numbers, no example was given"


def _recorded(model: nn.Module, layers: Sequence[LinearLayer], batch: Batch) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}

    def watcher(name: str) -> Any:
        def see(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            rows = arguments[0].detach().reshape(-1, arguments[0].shape[-1])
            seen.setdefault(name, rows[-ROWS:].clone())

        return see

    handles = [
        layer.module.register_forward_pre_hook(watcher(layer.name), prepend=True)
        for layer in layers
    ]
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            model(**batch)
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True
    return seen
