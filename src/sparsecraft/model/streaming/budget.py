"""The memory that a streamed pruning will take, said and checked before it starts.

Counted: the largest block in the type it is computed in, float32 copies of its largest matrix, the
statistics of its inputs, the hidden states between two blocks, what one batch leaves in a block
while it passes, and what runs before the first block (the embeddings).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sparsecraft.core.errors import OutOfMemory
from sparsecraft.core.kinds import Layerwise
from sparsecraft.model.blocks import is_linear
from sparsecraft.model.estimate import state_bytes
from sparsecraft.model.memory import Room, format_bytes
from sparsecraft.model.pruning import count_tokens
from sparsecraft.model.streaming.raw_files import CHUNK
from sparsecraft.model.streaming.skeleton import Skeleton
from sparsecraft.model.streaming.stages import targets_of
from sparsecraft.model.targets import Targets

_FLOAT = 4
_COPIES = 5
"""Float32 copies of a matrix while it is pruned: itself, its scores and what they are made of, the
result, and the work space of the selection."""
_OVERHEAD = 64 * 2**20
"""Compiled kernels, packed weights of a matrix product, and what an allocator cannot give back."""
_SMALLEST = 32
"""The shortest window that is worth advising."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The parts of the memory that is needed beside what the process has already.

    Args:
        block: Of the largest block.
        matrix: Of float32 copies of its largest matrix.
        statistics: Of the running sums and their values.
        before: Of what runs before the first block.
        hidden: Of the hidden states, for one token.
        passing: Of what a batch leaves in a block, for one token of it.
        tokens: Calibration tokens.
        batch: Tokens of the largest batch.
    """

    block: int
    matrix: int
    statistics: int
    before: int
    hidden: int
    passing: int
    tokens: int
    batch: int

    @property
    def bytes(self) -> int:
        """The most that is needed at one time."""
        return self.with_tokens(self.tokens, self.batch)

    def with_tokens(self, tokens: int, batch: int) -> int:
        """Returns what would be needed with other calibration data."""
        states = tokens * self.hidden
        pruning = self.block + self.statistics + self.matrix
        running = self.block + self.statistics + batch * self.passing
        beginning = self.before + batch * self.passing
        return states + max(pruning, running, beginning) + CHUNK + _OVERHEAD

    def check(self, room: Room | None) -> None:
        """Raises OutOfMemory if there is not as much room, with the setting that would fit."""
        if room is None or self.bytes <= room.bytes:
            return
        raise OutOfMemory(
            f"pruning block by block needs about {format_bytes(self.bytes)} "
            f"({self._parts()}), but {format_bytes(max(0, room.bytes))} is left: {room.limit}. "
            f"{self._advice(room.bytes)}"
        )

    def _parts(self) -> str:
        parts = {
            "the largest block": self.block,
            "float32 copies of a matrix": self.matrix,
            "statistics": self.statistics,
            f"hidden states of {self.tokens} tokens": self.tokens * self.hidden,
            f"a batch of {self.batch} tokens passing a block": self.batch * self.passing,
        }
        return ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items() if size)

    def _advice(self, free: int) -> str:
        if self.tokens:
            tokens, batch = self.tokens, self.batch
            while tokens > _SMALLEST:
                tokens, batch = tokens // 2, min(batch, tokens // 2)
                if self.with_tokens(tokens, batch) <= free:
                    return f"It would fit with --max-tokens {tokens} (max_tokens={tokens})."
        least = self.with_tokens(min(self.tokens, _SMALLEST), min(self.batch, _SMALLEST))
        smaller = (
            " A method with smaller statistics needs less."
            if self.statistics > self.matrix + self.block
            else ""
        )
        return f"No setting makes it fit; it needs {format_bytes(least)} at least.{smaller}"


def budget_of(
    skeleton: Skeleton,
    blocks: Mapping[str, Sequence[str]],
    targets: Targets,
    method: Layerwise,
    batches: Sequence[Mapping[str, Any]],
) -> Budget:
    """Returns what a streamed pruning needs.

    Args:
        skeleton: The model.
        blocks: Name of each stage to the parameters that are in memory then.
        targets: What will be pruned.
        method: With its statistics.
        batches: The calibration batches that will be used.
    """
    by_stage = {name: targets_of(targets, parameters) for name, parameters in blocks.items()}
    passing = bool(method.statistics) and bool(batches)
    largest = max(blocks, key=lambda name: skeleton.nbytes(blocks[name]))
    width = _widths(skeleton.model, blocks[largest])
    item = skeleton.dtype.itemsize
    inside = {name for names in blocks.values() for name in names}
    return Budget(
        block=skeleton.nbytes(blocks[largest]),
        matrix=_COPIES * _FLOAT * max(target.numel for target in targets),
        statistics=2 * max(state_bytes(group, method.statistics) for group in by_stage.values()),
        before=skeleton.nbytes(_before(skeleton.model, inside)) if passing else 0,
        hidden=_input_width(skeleton.model, blocks[largest]) * item if passing else 0,
        passing=sum(width) * item if passing else 0,
        tokens=count_tokens(batches) if passing else 0,
        batch=max((_tokens(batch) for batch in batches), default=0) if passing else 0,
    )


def _widths(model: nn.Module, names: Iterable[str]) -> list[int]:
    """Returns the width of what every matrix of a block puts out."""
    modules = dict(model.named_modules())
    owners = dict.fromkeys(name.rpartition(".")[0] for name in names)
    found = []
    for owner in owners:
        weight = modules[owner]._parameters.get("weight")
        if is_linear(modules[owner]) and weight is not None:
            found.append(getattr(modules[owner], "out_features", weight.shape[-1]))
        found += [p.shape[1] for p in modules[owner].parameters(recurse=False) if p.dim() == 3]
    return found


def _input_width(model: nn.Module, names: Iterable[str]) -> int:
    """Returns the width of what a block reads: that of its first matrix."""
    for name in names:
        owner = model.get_submodule(name.rpartition(".")[0])
        if is_linear(owner):
            return getattr(owner, "in_features", None) or model.get_parameter(name).shape[0]
    return 0


def _before(model: nn.Module, inside: set[str]) -> list[str]:
    """Returns the parameters outside the blocks, but for the head, which is never run."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    mine = {id(p) for p in head.parameters()} if isinstance(head, nn.Module) else set()
    tied = _input_parameters(model)
    return [
        name
        for name, parameter in model.named_parameters()
        if name not in inside and (id(parameter) not in mine or id(parameter) in tied)
    ]


def _input_parameters(model: nn.Module) -> set[int]:
    embedding = getattr(model, "get_input_embeddings", lambda: None)()
    return {id(p) for p in embedding.parameters()} if isinstance(embedding, nn.Module) else set()


def _tokens(batch: Mapping[str, Any]) -> int:
    """Returns the tokens of a batch as they are computed, padding too; an image counts as one."""
    ids = batch.get("input_ids")
    if isinstance(ids, Tensor):
        return ids.numel()
    return max(math.prod(v.shape[:1]) for v in batch.values() if isinstance(v, Tensor))
