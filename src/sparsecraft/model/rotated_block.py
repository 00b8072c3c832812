"""A decoder block whose residual stream changes its basis on the way through.

A rotation gives attention and MLP a basis each, so the stream beside them has to be carried from
one to the next: h = x R_att + attention(norm(x)), out = h R_mlp + mlp(norm(h)). The block stays
the object that it is, under a subclass of its own class: its parameters keep their names, hooks
and hidden states are recorded as before, and `generate`, `torch.compile`, deepcopy and pickle see
an ordinary block with two more modules.

Reference:
    Ashkboos et al., 2024, arXiv 2401.15024 (the shortcuts); Chen et al., 2025, arXiv 2505.19427.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue

Carry = Callable[[Tensor], Tensor]


class Shortcut(nn.Linear):
    """Computes x R for the residual stream: a square matrix without bias.

    Args:
        width: Of the stream.
        like: Gives device and dtype.

    Example:
        >>> import torch
        >>> shortcut = Shortcut(2, like=torch.zeros(1))
        >>> _ = shortcut.weight.data.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        >>> shortcut(torch.tensor([1.0, 2.0])).tolist()
        [2.0, 1.0]
    """

    def __init__(self, width: int, *, like: Tensor) -> None:
        super().__init__(width, width, bias=False, device=like.device, dtype=like.dtype)

    def reset_parameters(self) -> None:
        """Begins with the identity, which carries the stream unchanged."""
        nn.init.eye_(self.weight)


class RotatedBlock(nn.Module):
    """What a rotated block has beyond its own class; made by `rotate_block`.

    `sublayers` names first norm, attention, second norm and MLP; `orthogonal` the layers inside
    whose columns are orthogonal. `mlp_shortcut` is None where the stream leaves in the basis that
    the MLP reads, as in the last block.
    """

    original: ClassVar[type[nn.Module]]
    argument_names: ClassVar[tuple[str, ...]]
    sublayers: tuple[str, str, str, str]
    orthogonal: tuple[str, ...]
    attention_shortcut: Shortcut
    mlp_shortcut: Shortcut | None

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Returns the hidden states after this block, in the basis of the next."""
        named = {**dict(zip(self.argument_names, args, strict=False)), **kwargs}
        carries = (self.attention_shortcut, self.mlp_shortcut or _unchanged)
        return pre_norm(self, self.sublayers, hidden_states, named, carries)

    def settings(self) -> dict[str, Any]:
        """Returns what `from_settings` needs to make it again, without its values."""
        return {
            "sublayers": list(self.sublayers),
            "orthogonal": list(self.orthogonal),
            "mlp_shortcut": self.mlp_shortcut is not None,
        }

    @classmethod
    def from_settings(
        cls,
        block: nn.Module,
        *,
        sublayers: Sequence[str],
        orthogonal: Sequence[str],
        mlp_shortcut: bool,
    ) -> RotatedBlock:
        """Returns the block itself, rotated, its shortcuts identities until they are loaded."""
        return rotate_block(block, sublayers, orthogonal, mlp_shortcut=mlp_shortcut)

    def __reduce__(self) -> tuple[Any, ...]:
        """Says how to copy and pickle it: its class is made at run time."""
        return _blank, (self.original,), self.__getstate__()


def pre_norm(
    block: nn.Module,
    sublayers: Sequence[str],
    hidden: Tensor,
    arguments: Mapping[str, Any],
    carries: tuple[Carry, Carry],
) -> Tensor:
    """Returns what a pre-norm block computes, its two residual sums as given.

    Args:
        block: Owns the sub-layers.
        sublayers: Names of first norm, attention, second norm and MLP.
        hidden: (batch, tokens, width).
        arguments: Passed on to the attention.
        carries: What becomes of the stream before each sum.
    """
    first_norm, attention, second_norm, mlp = (getattr(block, name) for name in sublayers)
    hidden = carries[0](hidden) + _first(attention(first_norm(hidden), **arguments))
    return carries[1](hidden) + _first(mlp(second_norm(hidden)))


def rotate_block(
    block: nn.Module, sublayers: Sequence[str], orthogonal: Sequence[str], *, mlp_shortcut: bool
) -> RotatedBlock:
    """Makes a block a `RotatedBlock` in place, with identities for shortcuts, and returns it.

    Args:
        block: A pre-norm block.
        sublayers: Names of first norm, attention, second norm and MLP.
        orthogonal: Names of layers inside whose columns are orthogonal.
        mlp_shortcut: Whether the stream changes its basis beside the MLP too.

    Raises:
        InvalidValue: If it is rotated already, or has no such sub-layers.
    """
    if isinstance(block, RotatedBlock):
        raise InvalidValue("the block is rotated already")
    missing = [name for name in sublayers if not isinstance(getattr(block, name, None), nn.Module)]
    if missing or len(sublayers) != 4:
        raise InvalidValue(
            f"a {type(block).__name__} has no sub-layer {', '.join(missing)}; it cannot be rotated "
            f"with the sub-layers {list(sublayers)}"
        )
    like = next(getattr(block, sublayers[0]).parameters())
    block.__class__ = _rotated(type(block))
    rotated = cast(RotatedBlock, block)
    first_norm, attention, second_norm, mlp = sublayers
    rotated.sublayers = (first_norm, attention, second_norm, mlp)
    rotated.orthogonal = tuple(orthogonal)
    rotated.attention_shortcut = Shortcut(len(like), like=like)
    rotated.mlp_shortcut = Shortcut(len(like), like=like) if mlp_shortcut else None
    return rotated


def restore_block(block: RotatedBlock) -> None:
    """Gives a rotated block its own class back, in place; its weights stay as they are."""
    for name in ("attention_shortcut", "mlp_shortcut", "sublayers", "orthogonal"):
        delattr(block, name)
    cast(nn.Module, block).__class__ = block.original


def rotated_blocks(model: nn.Module) -> dict[str, RotatedBlock]:
    """Returns the rotated blocks of a model by name; none if it is not rotated."""
    return {n: module for n, module in model.named_modules() if isinstance(module, RotatedBlock)}


def orthogonal_layers(model: nn.Module) -> frozenset[str]:
    """Returns the names of the layers whose columns a rotation made orthogonal.

    They are known of a model that was rotated here and of one that was loaded.
    """
    return frozenset(
        f"{name}.{layer}"
        for name, block in rotated_blocks(model).items()
        for layer in block.orthogonal
    )


def shortcuts(model: nn.Module) -> list[Shortcut]:
    """Returns every shortcut of a model, in its order."""
    return [module for module in model.modules() if isinstance(module, Shortcut)]


_classes: dict[type[nn.Module], type[nn.Module]] = {}


def _rotated(original: type[nn.Module]) -> type[nn.Module]:
    """Returns the rotated subclass of a block's class, one for each class."""
    if original not in _classes:
        _classes[original] = _subclass(original)
    return _classes[original]


def _subclass(original: type[nn.Module]) -> type[nn.Module]:
    parameters = list(inspect.signature(original.forward).parameters)
    described = {
        "__module__": original.__module__,
        "__doc__": f"A {original.__name__} with shortcuts.",
        "original": original,
        "argument_names": tuple(parameters[2:]),
    }
    return type(f"Rotated{original.__name__}", (RotatedBlock, original), described)


def _blank(original: type[nn.Module]) -> nn.Module:
    made = _rotated(original)
    return made.__new__(made)


def _unchanged(hidden: Tensor) -> Tensor:
    return hidden


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
