"""One vector of a model's forward pass: read for every prompt, and replaced by another.

A node is a hook point, a token position and a range of columns, so that it can be one attention
head at the last token. Nothing but its entries changes when it is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.model.hook_points import hook_point

Inputs = Tensor | Mapping[str, Tensor]
"""What a model is called with: one tensor, or keyword arguments; prompts along the first axis."""

Logits = Callable[[Any], Tensor]
"""From what a model returns to (rows, classes)."""

Outputs = Callable[[Tensor | None], Tensor]
"""From a node's values (rows, d), or None for its own, to (rows, classes)."""


@dataclass(frozen=True, eq=False)
class Node:
    """Where in a model a vector is.

    Args:
        at: Hook point, as `hook_point` reads it.
        position: Token position: one for all prompts (-1: the last), or int64 (rows,); None for a
            hook point that gives one vector for each prompt.
        columns: First column and the one after the last, or None for all: (64, 128) is the second
            head of width 64.
    """

    at: str
    position: int | Tensor | None = -1
    columns: tuple[int, int] | None = None

    def read(self, hidden: Tensor, rows: slice) -> Tensor:
        """Returns (rows, d) of the hook point's tensor (rows, tokens, width) for these prompts."""
        if self.position is not None:
            hidden = hidden[torch.arange(len(hidden)), self._positions(hidden, rows)]
        return hidden[:, self._slice(hidden)]

    def write(self, hidden: Tensor, rows: slice, values: Tensor) -> Tensor:
        """Returns a copy of the hook point's tensor in which the node has these values (rows, d).

        Raises:
            InvalidValue: If their shape is another.
        """
        place = self._slice(hidden)
        width = place.stop - place.start
        if values.shape != (len(hidden), width):
            raise InvalidValue(
                f"values of shape {tuple(values.shape)} for {self.at}: the node holds "
                f"({len(hidden)}, {width})"
            )
        changed = hidden.clone()
        values = values.to(hidden)
        if self.position is None:
            changed[:, place] = values
        else:
            changed[torch.arange(len(hidden)), self._positions(hidden, rows), place] = values
        return changed

    def _positions(self, hidden: Tensor, rows: slice) -> Tensor:
        if hidden.dim() != 3:
            raise InvalidValue(
                f"{self.at} gives {tuple(hidden.shape)}; a node at a token position needs (rows, "
                "tokens, width): use position=None for one vector a prompt"
            )
        if isinstance(self.position, Tensor):
            return self.position[rows]
        return torch.full((len(hidden),), self.position, dtype=torch.int64)  # type: ignore[arg-type]

    def _slice(self, hidden: Tensor) -> slice:
        if self.columns is None:
            return slice(0, hidden.shape[-1])
        first, end = self.columns
        if not 0 <= first < end <= hidden.shape[-1]:
            raise InvalidValue(
                f"columns={self.columns} are not in {self.at}, which has {hidden.shape[-1]}"
            )
        return slice(first, end)


@torch.no_grad()
def activations(
    model: nn.Module, nodes: Sequence[Node], inputs: Inputs, *, batch: int = 512
) -> list[Tensor]:
    """Returns for each node its activations (rows, d) on all prompts, in float32 or better.

    Args:
        model: Any module; its mode is left as it is.
        nodes: Where to read.
        inputs: The prompts.
        batch: Prompts in a forward pass.
    """
    found: list[list[Tensor]] = [[] for _ in nodes]
    for rows, part in batches(inputs, batch):
        with ExitStack() as stack:
            for node, kept in zip(nodes, found, strict=True):

                def look(hidden: Tensor, node: Node = node, kept: list[Tensor] = kept) -> None:
                    kept.append(_at_least_float(node.read(hidden.detach(), rows)))  # noqa: B023

                stack.enter_context(_removed(hook_point(model, node.at).watch(look)))
            call(model, part)
    return [torch.cat(kept) for kept in found]


@torch.no_grad()
def run(
    model: nn.Module,
    inputs: Inputs,
    replaced: Mapping[Node, Tensor] | None = None,
    *,
    logits: Logits | None = None,
    batch: int = 512,
) -> Tensor:
    """Returns (rows, classes), what the model says with some nodes replaced.

    Args:
        model: Any module.
        inputs: The prompts.
        replaced: Node to (rows, d).
        logits: Takes them from what the model returns; by default `.logits` or the tensor itself,
            of the last position if there are positions.
        batch: Prompts in a forward pass.
    """
    take = last_logits if logits is None else logits
    found = []
    for rows, part in batches(inputs, batch):
        with ExitStack() as stack:
            for node, values in (replaced or {}).items():

                def edit(
                    hidden: Tensor, node: Node = node, values: Tensor = values[rows]
                ) -> Tensor:
                    return node.write(hidden, rows, values)  # noqa: B023

                stack.enter_context(_removed(hook_point(model, node.at).replace(edit)))
            found.append(take(call(model, part)).detach())
    return torch.cat(found)


@dataclass(frozen=True, eq=False)
class NodeOutputs:
    """The function from a node's values, or None for its own, to what the model says.

    Args:
        model: Any module.
        node: Where values are put in.
        inputs: The prompts.
        logits: As in `run`.
        batch: Prompts in a forward pass.
    """

    model: nn.Module
    node: Node
    inputs: Inputs
    logits: Logits | None = None
    batch: int = 512

    def __call__(self, values: Tensor | None) -> Tensor:
        """Returns (rows, classes) with the node's values (rows, d) replaced, or left alone."""
        replaced = {} if values is None else {self.node: values}
        return run(self.model, self.inputs, replaced, logits=self.logits, batch=self.batch)

    def gradient(self, metric: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
        """Returns (rows, d), the gradient of each row's metric with respect to the node's values.

        Args:
            metric: From (rows, classes) to (rows,), differentiable.
            values: (rows, d), where the gradient is taken.
        """
        said = self(values).requires_grad_()
        with torch.enable_grad():
            (back,) = torch.autograd.grad(metric(said).sum(), said)
        parts = batches(self.inputs, self.batch)
        return torch.cat([self._back(rows, part, values, back) for rows, part in parts])

    def _back(self, rows: slice, part: Inputs, values: Tensor, back: Tensor) -> Tensor:
        """Returns the gradient of one batch, of that with respect to the logits."""
        leaf = values[rows].detach().clone().requires_grad_()
        take = last_logits if self.logits is None else self.logits
        handle = hook_point(self.model, self.node.at).replace(
            lambda hidden: self.node.write(hidden, rows, leaf)
        )
        with torch.enable_grad(), _removed(handle):
            said = take(call(self.model, part))
            (found,) = torch.autograd.grad(said, leaf, back[rows].to(said), allow_unused=True)
        return torch.zeros_like(leaf) if found is None else found


def outputs(
    model: nn.Module, node: Node, inputs: Inputs, *, logits: Logits | None = None
) -> NodeOutputs:
    """Returns the function from a node's values, or None for its own, to what the model says."""
    return NodeOutputs(model, node, inputs, logits)


def last_logits(output: Any) -> Tensor:
    """Returns (rows, classes) of a model's output: its logits, of the last position.

    Raises:
        InvalidValue: If there are none.
    """
    found = getattr(output, "logits", output)
    if isinstance(found, tuple | list) and found:
        found = found[0]
    if not isinstance(found, Tensor) or found.dim() not in (2, 3):
        raise InvalidValue(
            f"the model returns {type(output).__name__}, of which logits cannot be taken: give "
            "logits=, a function from it to (rows, classes)"
        )
    return found[:, -1] if found.dim() == 3 else found


def batches(inputs: Inputs, batch: int) -> Iterator[tuple[slice, Inputs]]:
    """Gives which rows, and their inputs, so many at a time.

    Raises:
        InvalidValue: If there are none.
    """
    rows = len(inputs) if isinstance(inputs, Tensor) else len(next(iter(inputs.values())))
    if not rows:
        raise InvalidValue("no prompts were given: give at least one")
    for start in range(0, rows, batch):
        part = slice(start, min(start + batch, rows))
        if isinstance(inputs, Tensor):
            yield part, inputs[part]
        else:
            yield part, {name: each[part] for name, each in inputs.items()}


def call(model: nn.Module, inputs: Inputs) -> Any:
    """Returns what the model returns for inputs."""
    return model(inputs) if isinstance(inputs, Tensor) else model(**inputs)


def _at_least_float(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


@contextmanager
def _removed(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
