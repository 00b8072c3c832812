"""Finds which entries of which tensors live and die together, by following one forward pass.

Every entry of every axis of every parameter gets a symbol. While the model computes, each
operation says which symbols must be one: a sum ties its summands, a product of matrices ties the
columns of one to the rows of the other, a normalisation ties its scale to its channels, a reshape
into heads ties the entries of a head. What cannot be removed is frozen: inputs, outputs,
normalised or reduced axes, and whatever an operation unknown here touches. Nothing depends on
the class or the name of a module, so that MLPs, residual networks and transformers take one path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sparsecraft.model.unit_symbols import (
    Labels,
    Part,
    Symbols,
    as_channels,
    padded,
    tensors_in,
    varying,
)

_AXES_ONLY = {"t", "transpose", "permute", "unsqueeze", "detach", "alias"}
_MOVES = {
    "view", "_unsafe_view", "_reshape_alias", "squeeze", "expand", "slice", "select", "split",
    "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "unbind", "repeat", "flip",
    "roll", "index", "index_select", "unfold", "pixel_shuffle", "pixel_unshuffle",
}  # fmt: skip
_LIKE_POINTWISE = {
    "clone", "_to_copy", "copy", "native_dropout", "lift_fresh", "lift_fresh_copy", "masked_fill",
    "where", "tril", "triu", "empty_like", "zeros_like", "ones_like", "full_like", "rand_like",
    "randn_like", "bernoulli",
}  # fmt: skip
_REDUCTIONS = {
    "mean", "sum", "var", "std", "var_mean", "amax", "amin", "max", "min", "argmax", "argmin",
    "logsumexp", "norm", "linalg_vector_norm", "prod", "all", "any",
}  # fmt: skip
_ALONG = {"_softmax", "_log_softmax", "cumsum", "sort", "topk"}
_SPATIAL = ("max_pool", "avg_pool", "adaptive", "_adaptive", "upsample", "reflection_pad",
            "replication_pad", "mkldnn_max_pool")  # fmt: skip


class UnitTracer(TorchDispatchMode):
    """Follows the symbols of the given tensors through all operations inside the context.

    Args:
        tensors: Parameters and buffers by name.

    Attributes:
        symbols: The classes found so far.
        first: (name, axis) to the symbol of its entry 0; the others follow it.
        unknown: Names of the operations that could not be followed.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.first: dict[tuple[str, int], int] = {}
        self.unknown: set[str] = set()
        self._labels: dict[int, Labels] = {}
        self._weights: set[int] = set()
        self._alive: list[Tensor] = []
        total = 0
        for name, tensor in tensors.items():
            labels = []
            for axis, size in enumerate(tensor.shape):
                if size > 1:
                    self.first[name, axis] = total
                    shape = [size if each == axis else 1 for each in range(tensor.dim())]
                    labels.append(torch.arange(total, total + size).view(shape))
                    total += size
            self._set(tensor, labels, weight=True)
        self.symbols = Symbols(total)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Runs the operation and follows the symbols through it."""
        kwargs = kwargs or {}
        # The operation may write into its first argument: the rules need the labels of before.
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        outputs = func(*args, **kwargs)
        if any(self._get(each) for each in tensors):
            self._rule(func)(func, tensors, args, kwargs, outputs)
        return outputs

    def freeze(self, values: Any) -> None:
        """Freezes all symbols of the tensors in a nested structure, such as a model's output."""
        for value in tensors_in(values):
            for label in self._get(value):
                self._freeze(label)

    # ---- bookkeeping -------------------------------------------------------------------------

    def _get(self, tensor: Tensor) -> Labels:
        return self._labels.get(id(tensor), [])

    def _set(self, tensor: Tensor, labels: Iterable[Tensor], weight: bool = False) -> None:
        self._alive.append(tensor)  # so that its id stays its own
        self._labels[id(tensor)] = list(labels)
        if weight:
            self._weights.add(id(tensor))

    def _freeze(self, label: Tensor) -> None:
        self.symbols.frozen[label.reshape(-1)] = True

    def _squeezed(self, full: Tensor) -> Labels:
        """Returns the labels with size 1 wherever they do not vary; frozen if they nowhere do."""
        full = self.symbols.find(full) if varying(full)[1:] else full
        for axis in range(full.dim()):
            if full.shape[axis] > 1 and bool((full == full.narrow(axis, 0, 1)).all()):
                full = full.narrow(axis, 0, 1)
        if full.numel() <= 1:
            self._freeze(full)
            return []
        return [full]

    def _coarsened(self, label: Tensor, axis: int) -> Labels:
        """Returns the label with all symbols along the axis made one."""
        head = label.narrow(axis, 0, 1)
        self.symbols.union(label, head)
        return self._squeezed(head)

    def _merged(self, parts: Sequence[Part], shape: Sequence[int]) -> Labels:
        """Returns the labels of an elementwise combination, ties those that meet.

        Args:
            parts: Shape and labels of each operand.
            shape: The result's shape.
        """
        merged: Labels = []
        rank = len(shape)
        for _, labels in parts:
            for label in labels:
                label = padded(label, rank)
                for other in [m for m in merged if set(varying(m)) & set(varying(label))]:
                    merged = [m for m in merged if m is not other]
                    self.symbols.union(label, other)
                    same = varying(label) == varying(other)
                    found = [label] if same else self._squeezed(self._common(label, other))
                    if not found:
                        break
                    label = found[0]
                else:
                    merged.append(label)
        for label in merged:
            self._check_covered(label, parts, rank)
        return merged

    def _common(self, first: Tensor, second: Tensor) -> Tensor:
        return self.symbols.find(torch.broadcast_tensors(first, second)[0].contiguous())

    def _check_covered(self, label: Tensor, parts: Sequence[Part], rank: int) -> None:
        """Freezes what meets an axis of equal size that carries no symbols of its own."""
        for axis in varying(label):
            for shape, labels in parts:
                own = axis - (rank - len(shape))
                if own < 0 or shape[own] == 1:
                    continue
                if not any(axis in varying(padded(each, rank)) for each in labels):
                    self._freeze(label)

    def _rule(self, func: Any) -> Callable[..., None]:
        name = func.overloadpacket.__name__
        base = name.rstrip("_") if not name.startswith("__") else name
        special = getattr(self, f"_on_{base.lstrip('_')}", None)
        if special is not None:
            return special
        if base in _AXES_ONLY or base in _MOVES:
            return self._move
        if "batch_norm" in base:
            return self._batch_norm
        if "scaled_dot_product" in base:
            return self._attention
        if base in _REDUCTIONS and torch.Tag.pointwise not in func.tags:
            return self._reduce
        if base in _ALONG:
            return self._along
        if base.startswith(_SPATIAL):
            return self._spatial
        if torch.Tag.pointwise in func.tags or base in _LIKE_POINTWISE:
            return self._pointwise
        return self._give_up

    # ---- rules -------------------------------------------------------------------------------

    def _give_up(self, func: Any, tensors: list[Tensor], *_: Any) -> None:
        self.unknown.add(func.overloadpacket.__name__)
        self.freeze(tensors)

    def _pointwise(
        self, func: Any, tensors: list[Tensor], args: Any, kwargs: Any, outputs: Any
    ) -> None:
        parts = [(each.shape, self._get(each)) for each in tensors]
        weight = len(tensors) == 1 and id(tensors[0]) in self._weights
        for out in tensors_in(outputs):
            self._set(out, self._merged(parts, out.shape), weight)

    def _move(self, func: Any, tensors: list[Tensor], args: Any, kwargs: Any, outputs: Any) -> None:
        """Runs the movement of data on the labels themselves and reads where they went."""
        source = tensors[0]
        light = func.overloadpacket.__name__.rstrip("_") in _AXES_ONLY
        found: list[Labels] = [[] for _ in tensors_in(outputs)]
        for label in self._get(source):
            full = label if light else label.expand(source.shape).contiguous()
            moved = tensors_in(func(full, *args[1:], **kwargs))
            for out, each in zip(found, moved, strict=True):
                out += [each] if light else self._landed(each, len(varying(label)))
        weight = id(source) in self._weights
        for out_tensor, labels in zip(tensors_in(outputs), found, strict=True):
            self._set(out_tensor, labels, weight)

    def _landed(self, full: Tensor, axes_before: int) -> Labels:
        """Returns the labels after a move; an axis that was split keeps all but its inner part."""
        labels = self._squeezed(full)
        if not labels or len(varying(labels[0])) <= axes_before:
            return labels
        self.symbols.split[labels[0].reshape(-1)] = True
        return self._coarsened(labels[0], varying(labels[0])[-1])

    def _on_cat(
        self, func: Any, tensors: list[Tensor], args: Any, kwargs: Any, out: Tensor
    ) -> None:
        axis = _argument(func, args, kwargs, "dim") % out.dim()
        parts = [each for each in tensors if each.dim() == out.dim()]
        across = [[lab for lab in self._get(t) if axis not in varying(lab)] for t in parts]
        shapes = [[1 if i == axis else n for i, n in enumerate(t.shape)] for t in parts]
        labels = self._merged(list(zip(shapes, across, strict=True)), out.shape)
        along = [[lab for lab in self._get(t) if axis in varying(lab)] for t in parts]
        same_axes = {tuple(varying(lab)) for each in along for lab in each}
        if all(along) and len(same_axes) == 1:
            labels += [torch.cat([each[0] for each in along], axis)]
        else:
            for each in along:
                for label in each:
                    self._freeze(label)
        self._set(out, labels)

    def _on_mm(self, func: Any, tensors: list[Tensor], args: Any, kwargs: Any, out: Tensor) -> None:
        a, b = tensors
        self._set(out, self._product(a, b, self._get(a), self._get(b)))

    _on_bmm = _on_mm

    def _on_addmm(
        self, func: Any, tensors: list[Tensor], args: Any, kwargs: Any, out: Tensor
    ) -> None:
        bias, a, b = tensors
        product = self._product(a, b, self._get(a), self._get(b))
        parts = [(out.shape, product), (bias.shape, self._get(bias))]
        self._set(out, self._merged(parts, out.shape))

    _on_baddbmm = _on_addmm

    def _product(self, a: Tensor, b: Tensor, labels_a: Labels, labels_b: Labels) -> Labels:
        """Returns the labels of a @ b, (..., m, k) @ (..., k, n)."""
        rank = a.dim()
        left, inner_a = self._without(labels_a, rank - 1)
        right, inner_b = self._without(labels_b, rank - 2)
        for tensor, inner in ((a, inner_a), (b, inner_b)):
            if id(tensor) in self._weights:
                for label in inner:
                    self.symbols.outgoing[label.reshape(-1)] = True
        self._tie(inner_a, inner_b)
        shape_a, shape_b = (*a.shape[:-1], 1), (*b.shape[:-2], 1, b.shape[-1])
        shape = (*a.shape[:-1], b.shape[-1])
        return self._merged([(shape_a, left), (shape_b, right)], shape)

    def _without(self, labels: Labels, axis: int) -> tuple[Labels, list[Tensor]]:
        """Returns the labels that outlive a contraction of the axis, and those along it, flat."""
        rest: Labels = []
        inner: list[Tensor] = []
        for label in labels:
            if axis not in varying(label):
                rest.append(label)
            elif len(varying(label)) == 1:
                inner.append(label.reshape(-1))
            else:
                rest += self._coarsened(label, axis)
        return rest, inner

    def _tie(self, first: list[Tensor], second: list[Tensor]) -> None:
        if first and second:
            self.symbols.union(first[0], second[0])
            return
        for label in [*first, *second]:
            self._freeze(label)

    def _on_convolution(
        self, func: Any, tensors: list[Tensor], args: Any, kwargs: Any, out: Tensor
    ) -> None:
        x, weight, bias, transposed, groups = args[0], args[1], args[2], args[6], args[8]
        axis_in, axis_out = (0, 1) if transposed else (1, 0)
        channels = [lab.reshape(-1) for lab in self._get(x) if varying(lab) == [1]]
        self._freeze_unless(self._get(x), [1])
        rows, columns = (
            [lab.reshape(-1) for lab in self._get(weight) if varying(lab) == [axis]]
            for axis in (axis_out, axis_in)
        )
        if groups == 1:
            for label in columns:
                self.symbols.outgoing[label] = True
            self._tie(channels, columns)
        elif not transposed and groups == x.shape[1]:  # depthwise: each channel has its own rows
            self._tie([lab.repeat_interleave(out.shape[1] // groups) for lab in channels], rows)
        else:
            self.freeze([x, weight])
        self._freeze_unless(self._get(weight), [0], [1])
        shape = [1, -1] + [1] * (out.dim() - 2)
        parts: list[Part] = [(out.shape, [lab.view(shape) for lab in rows])]
        if bias is not None:
            parts.append(as_channels(bias, self._get(bias), out.dim()))
        self._set(out, self._merged(parts, out.shape))

    def _freeze_unless(self, labels: Labels, *allowed: list[int]) -> None:
        for label in labels:
            if varying(label) not in allowed:
                self._freeze(label)

    def _batch_norm(
        self, func: Any, tensors: list[Tensor], args: Any, kwargs: Any, outputs: Any
    ) -> None:
        x, *others = tensors
        parts: list[Part] = [(x.shape, self._get(x))]
        parts += [as_channels(each, self._get(each), x.dim()) for each in others]
        self._set(tensors_in(outputs)[0], self._merged(parts, x.shape))

    def _on_native_layer_norm(
        self, func: Any, tensors: list[Tensor], args: Any, kwargs: Any, outputs: Any
    ) -> None:
        x, axes = tensors[0], len(args[1])
        for label in self._get(x):
            if any(axis >= x.dim() - axes for axis in varying(label)):
                self._freeze(label)
        parts = [(each.shape, self._get(each)) for each in tensors]
        self._set(tensors_in(outputs)[0], self._merged(parts, x.shape))

    _on_fused_rms_norm = _on_native_layer_norm

    def _on_native_group_norm(
        self, func: Any, tensors: list[Tensor], args: Any, kwargs: Any, outputs: Any
    ) -> None:
        self.freeze(tensors)
        self._set(tensors_in(outputs)[0], self._get(tensors[0]))

    def _on_embedding(
        self, func: Any, tensors: list[Tensor], args: Any, kwargs: Any, out: Tensor
    ) -> None:
        self._freeze_unless(self._get(args[0]), [1])
        shape = [1] * (out.dim() - 1) + [-1]
        self._set(out, [lab.view(shape) for lab in self._get(args[0]) if varying(lab) == [1]])

    def _reduce(
        self, func: Any, tensors: list[Tensor], args: Any, kwargs: Any, outputs: Any
    ) -> None:
        x, outs = tensors[0], tensors_in(outputs)
        given = _argument(func, args, kwargs, "dim")
        listed = [given] if isinstance(given, int) else list(given or range(x.dim()))
        axes = sorted({axis % x.dim() for axis in listed}, reverse=True)
        kept = []
        for label in self._get(x):
            if set(axes) & set(varying(label)):
                self._freeze(label)
                continue
            for axis in axes if outs[0].dim() < x.dim() else []:
                label = label.squeeze(axis)
            kept.append(label)
        for out in outs:
            self._set(out, kept)

    def _along(
        self, func: Any, tensors: list[Tensor], args: Any, kwargs: Any, outputs: Any
    ) -> None:
        x = tensors[0]
        axes = {_argument(func, args, kwargs, "dim") % x.dim()}
        for label in self._get(x):
            if axes & set(varying(label)):
                self._freeze(label)
        for out in tensors_in(outputs):
            same = [lab for lab in self._get(x) if not axes & set(varying(lab))]
            self._set(out, self._get(x) if out.shape == x.shape else same)

    def _spatial(
        self, func: Any, tensors: list[Tensor], args: Any, kwargs: Any, outputs: Any
    ) -> None:
        labels = self._get(tensors[0])
        self._freeze_unless(labels, [1])
        for out in tensors_in(outputs):
            self._set(out, [lab for lab in labels if varying(lab) == [1]])

    def _on_constant_pad_nd(
        self, func: Any, tensors: list[Tensor], args: Any, kwargs: Any, out: Tensor
    ) -> None:
        kept = []
        for label in self._get(tensors[0]):
            if all(out.shape[axis] == label.shape[axis] for axis in varying(label)):
                kept.append(label)
            else:
                self._freeze(label)
        self._set(out, kept)

    def _attention(
        self, func: Any, tensors: list[Tensor], args: Any, kwargs: Any, outputs: Any
    ) -> None:
        q, k, v, *masks = tensors
        out = tensors_in(outputs)[0]
        each = q.shape[1] // k.shape[1]  # grouped queries: each key serves several heads
        keys, values = (
            [lab.repeat_interleave(each, 1) if lab.shape[1] > 1 else lab for lab in self._get(t)]
            for t in (k, v)
        )
        turned = k.transpose(-1, -2).repeat_interleave(each, 1)
        scores = self._product(q, turned, self._get(q), [lab.mT for lab in keys])
        shape = (*q.shape[:-1], k.shape[-2])
        parts = [(shape, scores)] + [(m.shape, self._get(m)) for m in masks if m.dim() == q.dim()]
        weights = q.new_empty(shape)
        self._set(out, self._product(weights, v, self._merged(parts, shape), values))


def _argument(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], name: str) -> Any:
    """Returns the value of an operation's argument, its default if it was not given."""
    for position, argument in enumerate(func._schema.arguments):
        if argument.name == name:
            given = args[position] if position < len(args) else argument.default_value
            return kwargs.get(name, given)
    return None
