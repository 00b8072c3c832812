"""What flows into the layers of a model: hooks that show it to running statistics.

Layers that read one tensor (query, key and value) share one set of sums; fused experts see the
tokens that were routed to them; padding is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue, NonFinite
from sparsecraft.core.statistics import Statistic
from sparsecraft.model.targets import Target

Batch = Mapping[str, Tensor]
Values = dict[str, dict[type[Statistic], Tensor]]


@dataclass
class Taps:
    """The running statistics of one stage, one set for each distinct input.

    Args:
        targets: Whose inputs are watched.
        wanted: Which statistics.
    """

    targets: Sequence[Target]
    wanted: Sequence[type[Statistic]]
    device: torch.device
    leaders: dict[str, str] = field(default_factory=dict)
    sums: dict[str, list[Statistic]] = field(default_factory=dict)
    valid: Tensor | None = None
    _inputs: dict[int, tuple[str, Tensor]] = field(default_factory=dict)

    def start(self, batch: Batch) -> None:
        """Says which tokens of the coming batch are padding."""
        mask = batch.get("attention_mask")
        self.valid = mask.bool() if mask is not None and mask.dim() == 2 else None
        self._inputs.clear()

    def see(self, key: str, x: Tensor, module: nn.Module) -> None:
        """Takes the input of a layer into account, unless a layer with the same one did."""
        leader, _ = self._inputs.setdefault(id(x), (key, x))
        if self.leaders.setdefault(key, leader) != leader:
            raise InvalidValue(
                f"{key} shared its input with {self.leaders[key]} in one batch but not in another; "
                "calibrate it alone, with targets that name only this layer"
            )
        if leader == key:
            for sequence in _sequences(x, module, self.valid):
                self.observe(key, sequence)

    def observe(self, key: str, tokens: Tensor) -> None:
        """Adds one sequence (tokens, features) to the statistics of a layer."""
        if not torch.isfinite(tokens).all():
            raise NonFinite(
                f"the input of {key} has NaN or infinite values during calibration. "
                "Check the model and the calibration data, or load the model in float32."
            )
        if key not in self.sums:
            self.sums[key] = [kind(tokens.shape[-1], self.device) for kind in self.wanted]
        for statistic in self.sums[key]:
            statistic.observe(tokens)

    def values(self) -> tuple[Values, tuple[str, ...]]:
        """Returns (target name to statistics, targets that saw nothing)."""
        made = {key: {type(s): s.value for s in sums} for key, sums in self.sums.items()}
        found: Values = {}
        for target in self.targets:
            key = _key(target)
            key = self.leaders.get(key, key)
            if key in made:
                found[target.name] = made[key]
        return found, tuple(t.name for t in self.targets if t.name not in found)


@contextmanager
def tapped(model: nn.Module, taps: Taps) -> Iterator[None]:
    """Hooks the modules of the targets for the time of the block."""
    modules = dict(model.named_modules())
    handles = []
    for name in dict.fromkeys(target.module for target in taps.targets):
        module = modules[name]
        handles.append(module.register_forward_pre_hook(input_hook(name, module, taps)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def input_hook(
    name: str, module: nn.Module, taps: Taps
) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    """Returns the forward pre-hook that shows a module's inputs to the taps.

    Args:
        name: Of the module.
        module: A layer, or fused experts, each of which gets the tokens routed to it.
        taps: Where the statistics are gathered.
    """
    fused = hasattr(module, "num_experts") and hasattr(module, "down_proj")
    return _expert_hook(name, taps) if fused else _layer_hook(name, taps)


def _layer_hook(name: str, taps: Taps) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        taps.see(name, args[0], module)

    return hook


def _expert_hook(name: str, taps: Taps) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    """Gives every expert of a fused module the tokens that were routed to it."""

    def hook(module: Any, args: tuple[Any, ...]) -> None:
        hidden, chosen = args[0].flatten(0, -2), args[1].flatten(0, -2)
        for index in range(module.num_experts):
            tokens = hidden[(chosen == index).any(-1)]
            if not len(tokens):
                continue
            first = "gate_up_proj" if hasattr(module, "gate_up_proj") else "up_proj"
            taps.observe(f"{name}.{first}[{index}]", tokens)
            taps.observe(f"{name}.down_proj[{index}]", expert_hidden(module, first, index, tokens))

    return hook


def expert_hidden(module: Any, first: str, index: int, tokens: Tensor) -> Tensor:
    """Returns what the second matrix of an expert reads."""
    weight = getattr(module, first)[index]
    bias = getattr(module, f"{first}_bias", None)
    weight = weight.T if getattr(module, "is_transposed", False) else weight
    out = F.linear(tokens, weight, None if bias is None else bias[index])
    return module._apply_gate(out) if first == "gate_up_proj" else module.act_fn(out)


def _key(target: Target) -> str:
    return target.module if target.index is None else target.name


def _sequences(x: Tensor, module: nn.Module, valid: Tensor | None) -> Iterator[Tensor]:
    """Yields the input of a layer as sequences (tokens, features), padding removed."""
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        yield from _patches(x, module)
    elif x.dim() <= 2:
        # One example a row: a network without sequences. Each row is a sequence of one token.
        yield from x.reshape(-1, 1, x.shape[-1])
    else:
        flat = x.reshape(-1, x.shape[-2], x.shape[-1])
        fits = valid is not None and valid.shape == flat.shape[:2]
        for i, sequence in enumerate(flat):
            yield sequence[valid[i]] if fits and valid is not None else sequence


def _patches(x: Tensor, conv: nn.Module) -> Iterator[Tensor]:
    if not isinstance(conv, nn.Conv2d) or conv.groups != 1 or isinstance(conv.padding, str):
        raise InvalidValue(
            "a method that needs input statistics works on Conv2d with groups=1 and numeric "
            f"padding; this one is {conv}. Take it out of the targets ('!name'), or use a method "
            "without calibration."
        )
    columns = F.unfold(
        x,
        conv.kernel_size,
        dilation=conv.dilation,
        padding=conv.padding,
        stride=conv.stride,
    )
    # unfold gives channels first; a weight's matrix has kernel positions first.
    by_channel = columns.unflatten(1, (conv.in_channels, -1))
    yield from by_channel.transpose(1, 2).flatten(1, 2).transpose(1, 2)
