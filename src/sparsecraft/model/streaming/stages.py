"""The stages of a streamed pruning: blocks with their hidden states, or matrices without data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.kinds import Layerwise, Role
from sparsecraft.model.block_calls import Call, catch_calls
from sparsecraft.model.blocks import find_blocks
from sparsecraft.model.calibration import Position, Progress, Stage, block_stages, usable_batches
from sparsecraft.model.pruning import layer_roles
from sparsecraft.model.streaming.layout import IN_MEMORY
from sparsecraft.model.streaming.skeleton import Skeleton
from sparsecraft.model.taps import Batch
from sparsecraft.model.targets import Target, Targets

Finished = Callable[[int, Sequence[Tensor]], None]


@dataclass(frozen=True)
class Plan:
    """What is in memory together, in order.

    Args:
        parameters: Name of each stage to the parameters that it needs.
        blocks: Name of the list of blocks that the hidden states run through; none without data.
    """

    parameters: dict[str, list[str]]
    blocks: str | None = None


def plan_of(model: nn.Module, targets: Targets, method: Layerwise) -> Plan:
    """Returns the stages in which a model can be pruned with one block in memory.

    Raises:
        InvalidValue: If a method that looks at data meets a model, or targets, for which hidden
            states cannot be carried from block to block.
    """
    lists = find_blocks(model)
    if not method.statistics:
        return Plan(_by_block(targets, [f"{n}.{i}" for n in lists for i in range(len(lists[n]))]))
    names = [name for name in lists if any(t.parameter.startswith(f"{name}.") for t in targets)]
    outside = [t.name for t in targets if not t.parameter.startswith(tuple(f"{n}." for n in lists))]
    why = ""
    if not lists:
        why = "it has no list of repeated blocks"
    elif len(lists) > 1:
        why = f"it has several lists of blocks ({', '.join(lists)}), one reading from another"
    elif outside:
        why = f"{len(outside)} of the targets lie outside the blocks ({', '.join(outside[:3])})"
    if why:
        raise InvalidValue(
            f"{type(model).__name__} cannot be pruned block by block with {method.info.name}: "
            f"{why}. {IN_MEMORY}"
        )
    prefixes = [f"{names[0]}.{i}" for i in range(len(lists[names[0]]))]
    every = [name for name, _ in model.named_parameters()]
    inside = {p: [name for name in every if name.startswith(f"{p}.")] for p in prefixes}
    return Plan(inside, names[0])


def roles_of(
    model: nn.Module, method: Layerwise, targets: Targets, batches: Sequence[Batch]
) -> Mapping[str, Role | None]:
    """Returns the role of each target, where the method asks for roles; shapes alone tell it.

    Raises:
        InvalidValue: If the model does not run without memory.
    """
    if not method.needs_roles:
        return layer_roles(model, method, targets, batches)
    shapes: Any = copy.deepcopy(model).to("meta")
    if hasattr(shapes, "set_attn_implementation"):
        shapes.set_attn_implementation("eager")  # fused attention cannot be followed by shapes
    inputs = [{k: v.to("meta") for k, v in batch.items()} for batch in batches[:1]]
    try:
        return layer_roles(shapes, method, targets, inputs)
    except (InvalidValue, NotImplementedError, RuntimeError) as error:
        raise InvalidValue(
            f"{method.info.name} asks which layers are attention, which {type(model).__name__} "
            f"does not tell without its weights. {IN_MEMORY} ({error})"
        ) from error


@dataclass
class StreamedBlocks:
    """The blocks of a skeleton; each has memory only while it is asked for.

    Args:
        skeleton: The model.
        plan: With the list of blocks.
        tell: Called when a block is done.
        filled: The parameters that have memory now, by name.
    """

    skeleton: Skeleton
    plan: Plan
    tell: Finished
    filled: dict[str, Tensor] = field(default_factory=dict)

    @property
    def model(self) -> nn.Module:
        """The model that the blocks are part of."""
        return self.skeleton.model

    @property
    def names(self) -> Sequence[str]:
        """Of the blocks, in order."""
        return list(self.plan.parameters)

    def calls(self, batches: Sequence[Batch]) -> Iterator[list[Call]]:
        """Yields how each block is called for each batch, without running any."""
        blocks = [self.model.get_submodule(name) for name in self.names]
        with self.skeleton.filled_on_use(tuple(f"{name}." for name in self.names)):
            for batch in batches:
                yield catch_calls(self.model, blocks, batch)

    @contextmanager
    def block(self, index: int) -> Iterator[nn.Module]:
        """Gives a block its memory until the end of the context."""
        with self.memory(index):
            yield self.model.get_submodule(self.names[index])

    @contextmanager
    def memory(self, index: int) -> Iterator[None]:
        """Gives the parameters of a stage their memory until the end of the context."""
        with self.skeleton.filled(self.plan.parameters[self.names[index]]) as self.filled:
            yield
        self.filled = {}

    def finished(self, index: int, hidden: Sequence[Tensor]) -> None:
        """Hands on that a block is done."""
        self.tell(index + 1, hidden)


def streamed_stages(
    source: StreamedBlocks,
    targets: Targets,
    method: Layerwise,
    batches: Sequence[Batch],
    progress: Progress | None,
    start: Position,
) -> Iterator[Stage]:
    """Yields the stages that are not done yet; prune each before taking the next.

    Args:
        source: The blocks, and which parameters have memory.
        targets: What will be pruned.
        method: With its statistics.
        batches: Calibration batches.
        progress: Called with (stage, done, total).
        start: Where to begin.
    """
    if method.statistics:
        usable = usable_batches(method.statistics, batches)
        yield from block_stages(source, targets, method.statistics, usable, progress, start)
        return
    names = source.names
    for index in range(start.index, len(names)):
        if progress is not None:
            progress(names[index], index, len(names))
        with source.memory(index):
            mine = targets_of(targets, source.plan.parameters[names[index]])
            yield Stage(names[index], tuple(mine), {})
        source.finished(index, [])
    if progress is not None:
        progress(names[-1], len(names), len(names))


def targets_of(targets: Targets, parameters: Sequence[str]) -> list[Target]:
    """Returns the targets whose parameter is one of these."""
    wanted = set(parameters)
    return [target for target in targets if target.parameter in wanted]


def _by_block(targets: Targets, blocks: Sequence[str]) -> dict[str, list[str]]:
    """Returns the targeted parameters of each block, and those outside by themselves."""
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(target.parameter for target in targets):
        block = next((each for each in blocks if name.startswith(f"{each}.")), name)
        found.setdefault(block, []).append(name)
    return found
