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

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue, MissingStatistic
from sparsecraft.core.statistics import InputVariance, Statistic
from sparsecraft.model.block_calls import (
    BlockSource,
    Call,
    ResidentBlocks,
    SharedArguments,
    without_cache,
)
from sparsecraft.model.blocks import find_blocks
from sparsecraft.model.taps import Batch, Taps, Values, input_hook, tapped
from sparsecraft.model.targets import Target

__all__ = ["Batch", "Stage", "Taps", "Values", "block_stages", "input_hook", "stages"]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Stage:
    """Some targets that are pruned together, and the statistics of their inputs.

    Args:
        name: The block's name, or the layer's where there are no blocks.
        targets: The targets to prune now.
        values: Target name to statistic to value.
        unseen: Targets that no calibration token reached, such as an expert never chosen.
        outputs: Gives what the block makes of its inputs now, of the first batches only; None
            where there are no blocks.
    """

    name: str
    targets: tuple[Target, ...]
    values: Values
    unseen: tuple[str, ...] = ()
    outputs: Callable[[int], list[Tensor]] | None = None


def stages(
    model: nn.Module,
    targets: Sequence[Target],
    wanted: Sequence[type[Statistic]],
    batches: Sequence[Batch],
    progress: Progress | None = None,
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
    batches = usable_batches(wanted, batches)
    sources = [
        ResidentBlocks(model, [f"{name}.{i}" for i in range(len(blocks))], list(blocks))
        for name, blocks in find_blocks(model).items()
    ]
    inside = tuple(f"{name}." for source in sources for name in source.names)
    outside = [t for t in targets if not t.parameter.startswith(inside)] if inside else targets
    with torch.no_grad(), _evaluating(model):
        for source in sources:
            yield from block_stages(source, targets, wanted, batches, progress)
        yield from _single_stages(model, outside, wanted, batches, progress)


def usable_batches(wanted: Sequence[type[Statistic]], batches: Sequence[Batch]) -> list[Batch]:
    """Returns the batches without their labels.

    Raises:
        MissingStatistic: If there are none, naming the statistics that need them.
        InvalidValue: If texts are too short for what is asked of them.
    """
    if not batches:
        raise MissingStatistic(
            f"{', '.join(kind.__name__ for kind in wanted)} of the layer inputs is needed, "
            "but no calibration data was given (calibration=..., --calibration text.txt)"
        )
    if InputVariance in wanted and any(_single_tokens(batch) for batch in batches):
        raise InvalidValue(
            "the variance of the inputs within a text is needed, but a calibration text has one "
            "token; give sequences of at least 2 tokens"
        )
    return [{k: v for k, v in batch.items() if k != "labels"} for batch in batches]


def _single_tokens(batch: Batch) -> bool:
    return "input_ids" in batch and batch["input_ids"].shape[-1] < 2


@dataclass(frozen=True)
class Position:
    """Where a walk through blocks goes on.

    Args:
        index: The first block that is not done.
        hidden: Its input, batch by batch; the walk takes the list over and changes it. Not needed
            at the first block.
    """

    index: int = 0
    hidden: list[Tensor] = field(default_factory=list)


BEGINNING = Position()


def block_stages(
    source: BlockSource,
    targets: Sequence[Target],
    wanted: Sequence[type[Statistic]],
    batches: Sequence[Batch],
    progress: Progress | None = None,
    start: Position = BEGINNING,
) -> Iterator[Stage]:
    """Yields the targets of each block with their statistics; prune each before taking the next.

    Gradients must be off and the model in evaluation mode.

    Args:
        source: The blocks; each is asked for once, and let go when the next one's input is known.
        targets: What will be pruned; those outside the blocks are passed over.
        wanted: Statistics to gather.
        batches: Keyword arguments of the model's forward.
        progress: Called with (block, done, total).
        start: Where to go on, if not at the beginning.
    """
    names = source.names
    mine = {name: [t for t in targets if t.parameter.startswith(f"{name}.")] for name in names}
    if not any(mine.values()):
        return
    hidden = start.hidden if start.index else []
    calls = _calls(source, batches, None if start.index else hidden)
    for i in range(start.index, len(names)):
        if progress is not None:
            progress(names[i], i, len(names))
        now = [of_batch[i] for of_batch in calls]
        with source.block(i) as block:
            if mine[names[i]]:
                taps = Taps(mine[names[i]], wanted, _device(block))
                with tapped(source.model, taps):
                    for batch, x, call in zip(batches, hidden, now, strict=True):
                        taps.start(batch)
                        call.run(block, x)
                values, unseen = taps.values()
                del taps
                outputs = partial(_outputs, block, hidden, now)
                yield Stage(names[i], tuple(mine[names[i]]), values, unseen, outputs)
                del values, outputs
            if i + 1 < len(names):
                for j, call in enumerate(now):  # one by one, so that no state is held twice
                    hidden[j] = call.run(block, hidden[j])
        source.finished(i, hidden if i + 1 < len(names) else [])
    if progress is not None:
        progress(names[-1], len(names), len(names))


def _outputs(
    block: nn.Module, hidden: Sequence[Tensor], calls: Sequence[Call], batches: int
) -> list[Tensor]:
    """Returns what a block makes of its inputs in the first batches."""
    first = list(zip(hidden, calls, strict=True))[:batches]
    return [call.run(block, x) for x, call in first]


def _calls(
    source: BlockSource, batches: Sequence[Batch], hidden: list[Tensor] | None
) -> list[list[Call]]:
    """Returns how each block is called for each batch; equal arguments are held once.

    What the first block reads is added to `hidden`, where that is given.
    """
    pool = SharedArguments()
    calls = []
    for of_batch in source.calls(batches):
        if hidden is not None:
            hidden.append(of_batch[0].hidden)
        of_batch[0] = replace(of_batch[0], hidden=torch.empty(0))
        calls.append([pool.shared(call) for call in of_batch])
    return calls


def _single_stages(
    model: nn.Module,
    targets: Sequence[Target],
    wanted: Sequence[type[Statistic]],
    batches: Sequence[Batch],
    progress: Progress | None,
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
        with tapped(model, taps):
            for batch in batches:
                taps.start(batch)
                model(**batch)
        values, unseen = taps.values()
        yield Stage(module_name, tuple(by_module[module_name]), values, unseen)


def _execution_order(model: nn.Module, names: Sequence[str], batch: Batch) -> list[str]:
    order: list[str] = []
    modules = dict(model.named_modules())

    def note(name: str) -> Callable[..., None]:
        return lambda *_: None if name in order else order.append(name)

    handles = [modules[name].register_forward_pre_hook(note(name)) for name in names]
    try:
        model(**without_cache(model, batch))
    finally:
        for handle in handles:
            handle.remove()
    return order + [name for name in names if name not in order]


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
