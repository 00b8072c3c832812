"""What every format of a linear layer's weight can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

# What a tile of an unpacked weight may take: it should stay in a core's cache.
TILE_BYTES = 1 << 20
INPUT_DTYPES = (torch.float32, torch.bfloat16)


class WeightFormat(ABC):
    """A linear layer's weight (outputs, inputs), stored in some way, ready to multiply with.

    The numbers are computed in float32 from the stored ones and rounded once, to the type of the
    input. The weight is fixed: a gradient reaches the input and the bias only.

    Attributes:
        name: The format's name.
        dtypes: The types that the stored numbers may have.
    """

    name: ClassVar[str]
    dtypes: ClassVar[tuple[str, ...]]

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""

    @property
    @abstractmethod
    def dtype(self) -> str:
        """The type of the stored numbers: "float32", "bfloat16" or "int8"."""

    @classmethod
    @abstractmethod
    def pack(cls, weight: Tensor, dtype: str = "float32") -> Self:
        """Returns the weight in this format.

        Args:
            weight: (outputs, inputs), float32, bfloat16 or float16, finite.
            dtype: The type to store, one of the format's `dtypes`.

        Raises:
            ValueError: If the format cannot hold the weight; the message says why.
        """

    @abstractmethod
    def unpack(self) -> Tensor:
        """Returns the stored weight, dense and dequantised: (outputs, inputs).

        It is bfloat16 where bfloat16 is stored and float32 elsewhere.
        """

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Returns the stored tensors by name, for saving; no copies."""

    @classmethod
    @abstractmethod
    def from_tensors(
        cls, shape: tuple[int, int], dtype: str, tensors: Mapping[str, Tensor]
    ) -> Self:
        """Returns the weight whose `tensors()` these are.

        Raises:
            ValueError: If a tensor is missing, or has another shape or type than it must.
        """

    @abstractmethod
    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Returns the product of a checked input."""

    @property
    def nbytes(self) -> int:
        """Bytes of the stored tensors."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return next(iter(self.tensors().values())).device

    def to(self, device: torch.device | str) -> Self:
        """Returns the same weight on a device."""
        moved = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return self.from_tensors(self.shape, self.dtype, moved)

    def multiply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Returns x times the transposed weight, plus the bias: (rows, outputs), in x's type.

        Args:
            x: (rows, inputs), float32 or bfloat16.
            bias: (outputs,), or None.

        Raises:
            ValueError: If the input or the bias has another shape or type.
        """
        self.check(x, bias)
        return self._product(x, bias)

    def reference(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Returns what `multiply` does, by a plain product with the unpacked weight."""
        return plain_product(x, self.unpack(), bias)

    def check(self, x: Tensor, bias: Tensor | None) -> None:
        """Raises ValueError unless x is (rows, inputs) and the bias (outputs,)."""
        outputs, inputs = self.shape
        if x.dim() != 2 or x.shape[1] != inputs:
            raise ValueError(
                f"an input of shape {tuple(x.shape)} does not fit a weight of {outputs} x "
                f"{inputs}: give (rows, {inputs})"
            )
        if x.dtype not in INPUT_DTYPES:
            raise ValueError(f"an input of {x.dtype} is not allowed: give float32 or bfloat16")
        if bias is not None and tuple(bias.shape) != (outputs,):
            raise ValueError(f"a bias of shape {tuple(bias.shape)} is not allowed: ({outputs},)")


def plain_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Returns x times the transposed dense weight plus bias, summed in float32, in x's type."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    product = x.to(wide) @ weight.to(wide).t()
    if bias is not None:
        product = product + bias.to(wide)
    return product.to(x.dtype)


def product_in_tiles(
    x: Tensor, outputs: int, tile_of: Callable[[int, int], Tensor], bias: Tensor | None
) -> Tensor:
    """Returns what `plain_product` does, a few outputs at a time.

    What a tile unpacks stays in the cache until PyTorch's product has read it.

    Args:
        x: (rows, inputs).
        outputs: How many there are.
        tile_of: Outputs first to last of the weight, dense: (last - first, inputs); float32, or
            bfloat16 where x is.
        bias: (outputs,), or None.
    """
    step = max(32, TILE_BYTES // (4 * x.shape[1]))
    wide = x.float()
    products = []
    for first in range(0, outputs, step):
        tile = tile_of(first, min(outputs, first + step))
        products.append((x if tile.dtype == x.dtype else wide) @ tile.t())
    product = torch.cat(products, 1)
    return (product if bias is None else product + bias).to(x.dtype)


def differentiable(
    operator: Any,
    weight_of: Callable[..., Tensor],
    mask_of: Callable[..., Tensor] | None = None,
) -> None:
    """Gives an operator of (x, bias, *others) gradients with respect to the first two.

    Args:
        operator: The registered operator.
        weight_of: The dense weight (outputs, inputs), from `others`.
        mask_of: Which entries of x take part, from (x, *others); all where it is None.
    """

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*(item for item in inputs if isinstance(item, Tensor)))
        ctx.plain = [None if isinstance(item, Tensor) else (item,) for item in inputs]

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        x, bias, *others = (next(saved) if item is None else item[0] for item in ctx.plain)
        grad_x = (grad.float() @ weight_of(*others).float()).to(x.dtype)
        if mask_of is not None:
            grad_x = grad_x * mask_of(x, *others)
        grad_bias = None if bias is None else grad.float().sum(0).to(bias.dtype)
        return grad_x, grad_bias, *(None for _ in others)

    operator.register_autograd(backward, setup_context=keep)


def run(operator: Any, direct: Callable[..., Tensor], x: Tensor, *others: Any) -> Tensor:
    """Returns the product, past PyTorch's dispatcher wherever nobody needs it.

    The dispatcher costs a registered operator about as much time as a small product. What needs
    it: compilers, which must see the operator; gradients; and tensors that are more than data.

    Args:
        operator: The registered operator.
        direct: The function that it runs.
        x: The input.
        others: What both take after x.
    """
    plain = type(x) is Tensor and not torch.compiler.is_compiling()
    if plain and not (torch.is_grad_enabled() and _wants_gradient(x, others)):
        return direct(x, *others)
    return operator(x, *others)


def _wants_gradient(x: Tensor, others: Sequence[Any]) -> bool:
    return any(isinstance(item, Tensor) and item.requires_grad for item in (x, *others))


def checked_weight(kind: type[WeightFormat], weight: Tensor, dtype: str) -> Tensor:
    """Returns the weight, detached, if the format can be made of it.

    Raises:
        ValueError: If it is no finite matrix of floats, or the format does not store the type.
    """
    if dtype not in kind.dtypes:
        raise ValueError(f"the format {kind.name} stores {', '.join(kind.dtypes)}, not {dtype!r}")
    if weight.dim() != 2 or 0 in weight.shape:
        raise ValueError(f"a weight of shape {tuple(weight.shape)} is no matrix with entries")
    if not weight.dtype.is_floating_point:
        raise ValueError(f"a weight of {weight.dtype} is not allowed: give floats")
    found = weight.detach()
    if not bool(torch.isfinite(found).all()):
        raise ValueError("the weight holds NaN or infinite entries")
    return found


def checked_tensors(
    kind: type[WeightFormat],
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, tuple[torch.dtype, tuple[int | None, ...]]],
) -> list[Tensor]:
    """Returns the tensors in the order of the expected ones, contiguous.

    Args:
        kind: The format, for the message.
        tensors: What was given.
        expected: Type and shape by name; None stands for any length.

    Raises:
        ValueError: If a name is missing or unknown, or a tensor does not fit.
    """
    if set(tensors) != set(expected):
        raise ValueError(
            f"the format {kind.name} needs the tensors {sorted(expected)}, not {sorted(tensors)}"
        )
    for name, (dtype, shape) in expected.items():
        found = tensors[name]
        fits = len(found.shape) == len(shape) and all(
            want in (None, have) for want, have in zip(shape, found.shape, strict=True)
        )
        if found.dtype != dtype or not fits:
            raise ValueError(
                f"the tensor {name!r} of a weight in format {kind.name} must be {dtype} of shape "
                f"{shape}, not {found.dtype} of shape {tuple(found.shape)}"
            )
    return [tensors[name].contiguous() for name in expected]
