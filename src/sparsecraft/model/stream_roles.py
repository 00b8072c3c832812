"""Which layer of an attention gives the keys, and which of an MLP the gate: seen by changing them.

Names are no guide across architectures, but behaviour is. What a single token attends to cannot
depend on its query or key, so a layer that changes the output there gives the values; of the
others, the one whose change at an earlier token reaches a later one gives the keys. In a gated MLP
the output is proportional to all of its factors but the gate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.seeds import generator

Forward = Callable[[], Tensor]
# Of the strongest and the second strongest effect, where the second should be none.
_CLEARLY = 10.0


def key_of(readers: Mapping[str, nn.Module], one: Forward, two: Forward, name: str) -> str:
    """Returns which of the layers gives the keys.

    Args:
        readers: The layers that read the attention's input; a single one is fused, and is it.
        one: Runs the attention on one token, giving (1, 1, width).
        two: The same on two tokens.
        name: Of the attention, for the message.

    Raises:
        InvalidValue: If none can be told from the others.
    """
    if len(readers) == 1:
        return next(iter(readers))
    alone = {reader: _effect(layer, one) for reader, layer in readers.items()}
    value = max(alone, key=alone.__getitem__)
    later = {r: _effect(layer, two) for r, layer in readers.items() if r != value}
    return _clear(later, name, "the keys")


def gate_of(readers: Mapping[str, nn.Module], forward: Forward, name: str) -> str:
    """Returns which of the layers is the gate, whose output goes through the non-linearity.

    Args:
        readers: The layers that read the MLP's input; of a plain MLP there is one, and it is it.
        forward: Runs the MLP.
        name: Of the MLP, for the message.

    Raises:
        InvalidValue: If none can be told from the others.
    """
    if len(readers) == 1:
        return next(iter(readers))
    bends = {}
    for reader, layer in readers.items():
        zero, one, two = (_scaled(layer, forward, factor) for factor in (0.0, 8.0, 16.0))
        bends[reader] = float((two - 2 * one + zero).norm() / (two - zero).norm().clamp_min(1e-30))
    return _clear(bends, name, "the gate")


def _clear(effects: Mapping[str, float], name: str, role: str) -> str:
    ranked = sorted(effects, key=effects.__getitem__, reverse=True)
    first, second = effects[ranked[0]], effects[ranked[1]] if len(ranked) > 1 else 0.0
    if first <= _CLEARLY * second:
        raise InvalidValue(
            f"{name}: none of {', '.join(effects)} could be told to give {role}; its structure is "
            "not known. Use the method without the rotation (transform=False, --no-rotation)."
        )
    return ranked[0]


def _effect(layer: nn.Module, forward: Forward) -> float:
    """Returns by how much the last token's output changes with the layer's first token."""

    def replace(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        changed = output.clone()
        noise = torch.randn(output.shape[-1], generator=generator(0, "roles"))
        changed[..., 0, :] = 10 * noise.to(changed)
        return changed

    before = forward()
    with _hooked(layer, replace):
        return float((forward() - before)[..., -1, :].norm())


def _scaled(layer: nn.Module, forward: Forward, factor: float) -> Tensor:
    with _hooked(layer, lambda module, args, output: output * factor):
        return forward().double()


@contextmanager
def _hooked(layer: nn.Module, hook: Callable[..., Tensor]) -> Iterator[None]:
    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
