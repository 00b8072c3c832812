"""Gates on a model: hooks that drop entries of what a module reads or of what it gives.

The gates are callable objects in the modules' own lists of hooks, so that they go with the model
through `deepcopy`, `torch.compile` and `generate`, and the keys of its `state_dict` stay as they
are. Whoever wants to know what is installed reads those lists.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from sparsecraft.core.gating import ActivationGate
from sparsecraft.model.blocks import find_blocks
from sparsecraft.model.gate_places import Place


class Meter(Protocol):
    """What looks at the masks while a gated model runs."""

    def __call__(self, place: Place, mask: Tensor, spared: int) -> None:
        """Sees bool (..., features), True where kept, and how many first tokens are spared."""


@dataclass(frozen=True)
class Origin:
    """Where the gates of a model come from; written beside them.

    Args:
        method: Name and settings, as `catalog.describe` gives them.
        seed: The run's seed.
        calibration: Number of tokens and fingerprint of the calibration data; empty without.
        versions: Of the packages.
        rotated: Whether the method rotated the model first.
    """

    method: Mapping[str, Any]
    seed: int = 0
    calibration: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    rotated: bool = False


class SequenceShape:
    """Remembers, as a hook before a block, how its tokens lie in sequences.

    Some blocks flatten their tokens before a matrix (OPT). What is gated there must know which
    tokens begin a sequence all the same.
    """

    def __init__(self) -> None:
        self.leading: tuple[int, ...] = ()

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Takes down the shape of the block's hidden states."""
        hidden = args[0] if args else kwargs.get("hidden_states")
        self.leading = tuple(hidden.shape[:-1]) if isinstance(hidden, Tensor) else ()

    def sequences(self, x: Tensor) -> Tensor:
        """Returns x as (..., tokens, features) where it is these tokens flattened, else x."""
        flat = x.dim() == 2 and len(self.leading) >= 2
        if flat and math.prod(self.leading) == x.shape[0]:
            return x.view(*self.leading, x.shape[-1])
        return x


@dataclass(eq=False)
class InstalledGate:
    """A gate at its place.

    Args:
        place: Where.
        gate: What is kept.
        asked: Sparsity asked there.
        origin: Where it comes from.
        shape: The sequences of its block, where there is one.
        meter: What looks at the masks, or None.
    """

    place: Place
    gate: ActivationGate
    asked: float
    origin: Origin
    shape: SequenceShape | None = None
    meter: Meter | None = None

    def gated(self, x: Tensor) -> Tensor:
        """Returns x with zeros where it is not kept; gradients pass what is kept."""
        sequences = x if self.shape is None else self.shape.sequences(x)
        mask = self.gate.mask(sequences)
        if self.meter is not None:
            self.meter(self.place, mask, self.gate.spared(sequences))
        return sequences.masked_fill(~mask, 0).view(x.shape)


class GateHook(InstalledGate):
    """Gates what a module reads: a forward pre-hook."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Returns the module's arguments with the first one gated."""
        return (self.gated(args[0]), *args[1:])


class OutputGateHook(InstalledGate):
    """Gates what a module gives: a forward hook."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Returns the gated output."""
        return self.gated(output)


def install(
    model: nn.Module,
    places: Mapping[Place, ActivationGate],
    asked: Mapping[str, float],
    origin: Origin,
) -> None:
    """Puts gates into a model.

    Args:
        model: It computes with gated activations afterwards.
        places: The gate of each place.
        asked: Place name to the sparsity asked there.
        origin: Where the gates come from.
    """
    modules = dict(model.named_modules())
    shapes = _shapes(model, places)
    for place, gate in places.items():
        shape = None if place.routed else shapes.get(place.block)
        share = asked[place.name]
        module = modules[place.module]
        if place.at == "input":
            module.register_forward_pre_hook(GateHook(place, gate, share, origin, shape))
        else:
            module.register_forward_hook(OutputGateHook(place, gate, share, origin, shape))


def remove(model: nn.Module, blocks: Sequence[str] = ("",)) -> None:
    """Takes all gates out of a model, or out of some of its blocks only."""
    modules = [each for name in blocks for each in model.get_submodule(name).modules()]
    for module in modules:
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [k for k, hook in hooks.items() if isinstance(hook, _OURS)]:
                del hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)


def installed(model: nn.Module) -> dict[str, InstalledGate]:
    """Returns every gate of a model with its place, by place name, in the model's order."""
    return {hook.place.name: hook for _, hook in _hooks(model)}


def installed_gates(model: nn.Module) -> dict[str, ActivationGate]:
    """Returns module name to the gate on its input; gates on activation functions are left out."""
    return {name: hook.gate for name, hook in _hooks(model) if isinstance(hook, GateHook)}


def _hooks(model: nn.Module) -> Iterator[tuple[str, InstalledGate]]:
    for name, module in model.named_modules():
        for hook in [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]:
            if isinstance(hook, InstalledGate):
                yield name, hook


def _shapes(model: nn.Module, places: Mapping[Place, ActivationGate]) -> dict[str, SequenceShape]:
    """Returns block name to what knows its sequences, where a gate spares tokens by place."""
    needed = {p.block for p, gate in places.items() if p.block and gate.prefill < 1}
    found: dict[str, SequenceShape] = {}
    for name, blocks in find_blocks(model).items():
        for index, block in enumerate(blocks):
            if f"{name}.{index}" in needed:
                shape = found[f"{name}.{index}"] = SequenceShape()
                block.register_forward_pre_hook(shape, with_kwargs=True)
    return found


_OURS = (InstalledGate, SequenceShape)
