"""Statistics of layer inputs, gathered block by block while the blocks before are pruned already.

The calibration batches pass block 0 dense, with hooks on its layers; the block is pruned; the same
batches pass it again, pruned, and what comes out is the input of block 1. Only one block's
statistics are held at a time, and layers that read one tensor (query, key and value) share one
statistic. A model without a list of blocks is walked layer by layer with whole forward passes.

Reference:
    The layer order of Zhang et al., 2023, arXiv 2310.08915, and Frantar, Alistarh, 2023,
    arXiv 2301.00774.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue, MissingStatistic, NonFinite
from sparsecraft.core.statistics import Statistic
from sparsecraft.model.blocks import find_blocks
from sparsecraft.model.targets import Target

Batch = Mapping[str, Tensor]
Values = dict[str, dict[type[Statistic], Tensor]]


@dataclass(frozen=True)
class Stage:
    """Some targets that are pruned together, and the statistics of their inputs.

    Args:
        name: The block's name, or the layer's where there are no blocks.
        targets: The targets to prune now.
        values: Target name to statistic to value.
        unseen: Targets that no calibration token reached, such as an expert never chosen.
    """

    name: str
    targets: tuple[Target, ...]
    values: Values
    unseen: tuple[str, ...] = ()


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


def stages(
    model: nn.Module,
    targets: Sequence[Target],
    wanted: Sequence[type[Statistic]],
    batches: Sequence[Batch],
    progress: Callable[[str, int, int], None] | None = None,
) -> Iterator[Stage]:
    """Yields the targets stage by stage with their statistics; prune each before taking the next.

    Args:
        model: The model; the caller prunes it in place between stages.
        targets: What will be pruned.
        wanted: Statistics to gather; none makes a single stage without any forward pass.
        batches: Keyword arguments of the model's forward; `labels` are left out.
        progress: Called with (stage, done, total).

    Raises:
        MissingStatistic: If statistics are wanted and there is no batch.
        NonFinite: If an activation is NaN or infinite.
    """
    if not wanted:
        yield Stage("model", tuple(targets), {})
        return
    if not batches:
        raise MissingStatistic(
            f"{', '.join(kind.__name__ for kind in wanted)} of the layer inputs is needed, "
            "but no calibration data was given (calibration=..., --calibration text.txt)"
        )
    batches = [{k: v for k, v in batch.items() if k != "labels"} for batch in batches]
    lists = find_blocks(model)
    plan = {
        name: [(f"{name}.{i}", block) for i, block in enumerate(blocks)]
        for name, blocks in lists.items()
    }
    inside = tuple(f"{prefix}." for blocks in plan.values() for prefix, _ in blocks)
    outside = [t for t in targets if not t.parameter.startswith(inside)] if inside else targets
    with torch.no_grad(), _evaluating(model):
        for blocks in plan.values():
            yield from _block_stages(model, blocks, targets, wanted, batches, progress)
        yield from _single_stages(model, outside, wanted, batches, progress)


def _block_stages(
    model: nn.Module,
    blocks: Sequence[tuple[str, nn.Module]],
    targets: Sequence[Target],
    wanted: Sequence[type[Statistic]],
    batches: Sequence[Batch],
    progress: Callable[[str, int, int], None] | None,
) -> Iterator[Stage]:
    mine = {name: [t for t in targets if t.parameter.startswith(f"{name}.")] for name, _ in blocks}
    if not any(mine.values()):
        return
    calls = [_record_calls(model, [block for _, block in blocks], batch) for batch in batches]
    hidden = [call[0][0] for call in calls]
    for i, (name, block) in enumerate(blocks):
        if progress is not None:
            progress(name, i, len(blocks))
        if mine[name]:
            taps = Taps(mine[name], wanted, _device(block))
            with _tapped(model, taps):
                for batch, x, call in zip(batches, hidden, calls, strict=True):
                    taps.start(batch)
                    _run_block(block, x, call[i])
            values, unseen = taps.values()
            yield Stage(name, tuple(mine[name]), values, unseen)
        hidden = [_run_block(block, x, call[i]) for x, call in zip(hidden, calls, strict=True)]
    if progress is not None:
        progress(blocks[-1][0], len(blocks), len(blocks))


def _single_stages(
    model: nn.Module,
    targets: Sequence[Target],
    wanted: Sequence[type[Statistic]],
    batches: Sequence[Batch],
    progress: Callable[[str, int, int], None] | None,
) -> Iterator[Stage]:
    """Yields one module at a time, in the order of execution, by whole forward passes."""
    by_module: dict[str, list[Target]] = {}
    for target in targets:
        by_module.setdefault(target.module, []).append(target)
    order = _execution_order(model, list(by_module), batches[0]) if by_module else []
    for i, module_name in enumerate(order):
        if progress is not None:
            progress(module_name, i, len(order))
        taps = Taps(by_module[module_name], wanted, _device(model))
        with _tapped(model, taps):
            for batch in batches:
                taps.start(batch)
                model(**batch)
        values, unseen = taps.values()
        yield Stage(module_name, tuple(by_module[module_name]), values, unseen)


Call = tuple[Tensor, tuple[Any, ...], dict[str, Any], bool]


def _record_calls(model: nn.Module, blocks: Sequence[nn.Module], batch: Batch) -> list[Call]:
    """Returns how each block is called in one dense forward pass of the model.

    Only the first block's hidden states are kept; the other arguments (masks, positions) are
    mostly shared between the blocks.
    """
    calls: dict[int, Call] = {}

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        index = position[id(module)]
        if index in calls:
            raise InvalidValue(
                f"block {index} runs more than once in a forward pass (shared blocks); "
                "calibrated methods cannot prune it block by block"
            )
        by_name = not args
        hidden = kwargs["hidden_states"] if by_name else args[0]
        rest = {k: v for k, v in kwargs.items() if not (by_name and k == "hidden_states")}
        rest.pop("past_key_values", None)
        keep = hidden if index == 0 else torch.empty(0)
        calls[index] = (keep, args[1:], rest, by_name)

    position = {id(block): i for i, block in enumerate(blocks)}
    handles = [block.register_forward_pre_hook(hook, with_kwargs=True) for block in blocks]
    try:
        model(**_without_cache(model, batch))
    finally:
        for handle in handles:
            handle.remove()
    missing = [i for i in range(len(blocks)) if i not in calls]
    if missing:
        raise InvalidValue(f"blocks {missing} did not run in a forward pass; cannot calibrate them")
    return [calls[i] for i in range(len(blocks))]


def _run_block(block: nn.Module, x: Tensor, call: Call) -> Tensor:
    _, args, kwargs, by_name = call
    out = block(hidden_states=x, **kwargs) if by_name else block(x, *args, **kwargs)
    return out[0] if isinstance(out, tuple) else out


@contextmanager
def _tapped(model: nn.Module, taps: Taps) -> Iterator[None]:
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
            taps.observe(f"{name}.down_proj[{index}]", _expert_hidden(module, first, index, tokens))

    return hook


def _expert_hidden(module: Any, first: str, index: int, tokens: Tensor) -> Tensor:
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


def _execution_order(model: nn.Module, names: Sequence[str], batch: Batch) -> list[str]:
    order: list[str] = []
    modules = dict(model.named_modules())

    def note(name: str) -> Callable[..., None]:
        return lambda *_: None if name in order else order.append(name)

    handles = [modules[name].register_forward_pre_hook(note(name)) for name in names]
    try:
        model(**_without_cache(model, batch))
    finally:
        for handle in handles:
            handle.remove()
    return order + [name for name in names if name not in order]


def _without_cache(model: nn.Module, batch: Batch) -> dict[str, Any]:
    config = getattr(model, "config", None)
    return {**batch, "use_cache": False} if getattr(config, "use_cache", False) else dict(batch)


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
