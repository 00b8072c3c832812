"""How the blocks of a model are called, so that each can be run by itself on given hidden states.

A block gets more than hidden states: masks, positions, rotary embeddings. They come from the
model's own forward, which is run once for each batch. `record_calls` lets the blocks compute;
`catch_calls` replaces what they compute by their input and stops behind the last one, so that a
model whose blocks are not in memory can be asked too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.model.taps import Batch


@dataclass(frozen=True)
class Call:
    """What a block was called with.

    Args:
        hidden: The hidden states; empty but for the first block, whose are not computed again.
        args: Positional arguments behind them.
        kwargs: Keyword arguments beside them.
        by_name: Whether the hidden states were given as `hidden_states=`.
    """

    hidden: Tensor
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    by_name: bool

    def run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Returns the hidden states that the block makes of these, called the same way."""
        if self.by_name:
            out = block(hidden_states=hidden, **self.kwargs)
        else:
            out = block(hidden, *self.args, **self.kwargs)
        return out[0] if isinstance(out, tuple) else out


class BlockSource(Protocol):
    """A list of blocks that can be had one at a time."""

    @property
    def model(self) -> nn.Module:
        """The model that they are part of."""

    @property
    def names(self) -> Sequence[str]:
        """Of the blocks, in order."""

    def calls(self, batches: Sequence[Batch]) -> Iterator[list[Call]]:
        """Yields how each block is called, batch by batch."""

    def block(self, index: int) -> AbstractContextManager[nn.Module]:
        """Gives a block for as long as it is needed."""

    def finished(self, index: int, hidden: Sequence[Tensor]) -> None:
        """Hears that a block is done, and what the next one will read, batch by batch."""


@dataclass(frozen=True)
class ResidentBlocks:
    """The blocks of a model that is in memory."""

    model: nn.Module
    names: Sequence[str]
    blocks: Sequence[nn.Module]

    def calls(self, batches: Sequence[Batch]) -> Iterator[list[Call]]:
        """Yields how each block is called, from one dense forward pass for each batch."""
        for batch in batches:
            yield record_calls(self.model, self.blocks, batch)

    @contextmanager
    def block(self, index: int) -> Iterator[nn.Module]:
        """Gives a block, which stays where it is."""
        yield self.blocks[index]

    def finished(self, index: int, hidden: Sequence[Tensor]) -> None:
        """Does nothing."""


def record_calls(model: nn.Module, blocks: Sequence[nn.Module], batch: Batch) -> list[Call]:
    """Returns how each block is called in one forward pass of the model.

    Only the first block's hidden states are kept; the other arguments (masks, positions) are
    mostly shared between the blocks.

    Raises:
        InvalidValue: If a block runs more than once in a pass, or not at all.
    """
    calls: dict[int, Call] = {}

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        index = position[id(module)]
        if index in calls:
            raise InvalidValue(
                f"block {index} runs more than once in a forward pass (shared blocks); "
                "calibrated methods cannot prune it block by block"
            )
        calls[index] = _call(args, kwargs, keep_hidden=index == 0)

    position = {id(block): i for i, block in enumerate(blocks)}
    handles = [block.register_forward_pre_hook(hook, with_kwargs=True) for block in blocks]
    try:
        model(**without_cache(model, batch))
    finally:
        for handle in handles:
            handle.remove()
    missing = [i for i in range(len(blocks)) if i not in calls]
    if missing:
        raise InvalidValue(f"blocks {missing} did not run in a forward pass; cannot calibrate them")
    return [calls[i] for i in range(len(blocks))]


def catch_calls(model: nn.Module, blocks: Sequence[nn.Module], batch: Batch) -> list[Call]:
    """Returns how each block is called, without running any of them.

    Every block hands its input on, and the forward pass ends behind the last. Models differ in
    whether a block returns the hidden states or a tuple; the form that lets the next block be
    called with what this one returned is the right one.

    Raises:
        InvalidValue: If the model computes something between its blocks, or needs more of a block
            than its hidden states.
    """
    reasons: list[str] = []
    for form in (_as_it_is, _as_tuple):
        try:
            return _caught(model, blocks, batch, form)
        except _CannotChain as reason:
            reasons.append(str(reason))
    raise InvalidValue(
        f"{type(model).__name__} cannot be asked how it calls its blocks without running them "
        f"({'; '.join(dict.fromkeys(reasons))}). Prune it in memory: --stream never, or "
        "sparsecraft.prune(model, ...)."
    )


def without_cache(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """Returns the arguments of a forward pass that keeps no keys and values."""
    config = getattr(model, "config", None)
    return {**batch, "use_cache": False} if getattr(config, "use_cache", False) else dict(batch)


class SharedArguments:
    """Keeps one tensor for all calls that have an equal one, such as the mask of equal windows."""

    def __init__(self) -> None:
        self._seen: dict[tuple[torch.Size, torch.dtype], list[Tensor]] = {}

    def shared(self, call: Call) -> Call:
        """Returns the call with tensors seen before in place of equal ones."""
        args = tuple(self._same(each) for each in call.args)
        kwargs = {name: self._same(each) for name, each in call.kwargs.items()}
        return Call(call.hidden, args, kwargs, call.by_name)

    def _same(self, value: Any) -> Any:
        if type(value) in (tuple, list):
            return type(value)(self._same(each) for each in value)
        if not isinstance(value, Tensor):
            return value
        known = self._seen.setdefault((value.shape, value.dtype), [])
        for each in known:
            if each is value or (each.device == value.device and torch.equal(each, value)):
                return each
        known.append(value)
        return value


class _CannotChain(Exception):
    """The blocks do not simply hand hidden states on."""


class _Complete(Exception):
    """All calls are known; the rest of the forward pass is not needed."""


def _call(args: tuple[Any, ...], kwargs: Mapping[str, Any], *, keep_hidden: bool) -> Call:
    by_name = not args
    hidden = kwargs["hidden_states"] if by_name else args[0]
    rest = {k: v for k, v in kwargs.items() if not (by_name and k == "hidden_states")}
    rest.pop("past_key_values", None)
    return Call(hidden if keep_hidden else torch.empty(0), args[1:], rest, by_name)


def _as_it_is(hidden: Tensor) -> Any:
    return hidden


def _as_tuple(hidden: Tensor) -> Any:
    return (hidden,)


def _caught(
    model: nn.Module, blocks: Sequence[nn.Module], batch: Batch, form: Callable[[Tensor], Any]
) -> list[Call]:
    calls: list[Call] = []

    def stand_in(index: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            call = _call(args, kwargs, keep_hidden=True)
            if index != len(calls):
                raise _CannotChain(f"block {index} is called after {len(calls)} others")
            if calls and call.hidden is not calls[0].hidden:
                raise _CannotChain(f"block {index} does not read what the one before it returns")
            kept = call.hidden if index == 0 else torch.empty(0)
            calls.append(call if index == 0 else Call(kept, call.args, call.kwargs, call.by_name))
            if len(calls) == len(blocks):
                raise _Complete
            return form(call.hidden)

        return forward

    for index, block in enumerate(blocks):
        # An attribute of the instance comes before the method of its class.
        block.forward = stand_in(index)
    try:
        model(**without_cache(model, batch))
    except _Complete:
        return calls
    except (AttributeError, IndexError, TypeError, RuntimeError, ValueError) as error:
        raise _CannotChain(f"{type(error).__name__}: {error}") from error
    finally:
        for block in blocks:
            del block.forward
    raise _CannotChain(f"{len(calls)} of {len(blocks)} blocks were called")
