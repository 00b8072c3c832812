"""Which shapes of zeros are allowed: unstructured, N:M, blocks, whole channels.

A pattern turns scores into a mask with an exact count, also where scores tie. Scores are
two-dimensional, (outputs, inputs): the host presents every weight that way, whatever its layer.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from sparsecraft.core.errors import InvalidValue, UnknownName, check_density
from sparsecraft.core.mask import count
from sparsecraft.kernels.blocks import block_sums, expand_blocks
from sparsecraft.kernels.nm import nm_mask
from sparsecraft.kernels.selection import keep_largest, keep_largest_per_row


class Pattern(ABC):
    """A family of allowed masks."""

    @property
    def fixed_density(self) -> float | None:
        """The density that the pattern itself implies, or None if it is free."""
        return None

    def check(self, shape: tuple[int, ...], name: str = "weight") -> None:  # noqa: B027
        """Raises InvalidValue if a weight (outputs, inputs, *kernel) cannot hold the pattern."""

    @abstractmethod
    def mask(self, scores: Tensor, density: float) -> Tensor:
        """Returns the bool mask that keeps the highest scores the pattern allows.

        Args:
            scores: (outputs, inputs), any float type, without NaN.
            density: Fraction kept, in (0, 1].

        Returns:
            bool (outputs, inputs).
        """

    def tensor_mask(self, scores: Tensor, density: float | None = None) -> Tensor:
        """Returns the bool mask of a weight in its own shape.

        Args:
            scores: (outputs, inputs, *kernel).
            density: Fraction kept, in (0, 1]; None where the pattern implies it.
        """
        kept = self.fixed_density if density is None else density
        if kept is None:
            raise InvalidValue(f"the pattern {self} implies no density: give one")
        shape = tuple(scores.shape)
        self.check(shape)
        return from_matrix(self.mask(as_matrix(scores), kept), shape).contiguous()

    def global_masks(self, scores: Sequence[Tensor], density: float) -> list[Tensor]:
        """Returns one mask for each matrix, the budget being shared by all of them.

        Raises:
            InvalidValue: If the pattern has no model-wide form.
        """
        raise InvalidValue(
            f"pattern {self} has no model-wide form: its pieces differ in size from layer to "
            "layer. Use a layer-wise method with it, or unstructured, N:M or block."
        )


@dataclass(frozen=True)
class Unstructured(Pattern):
    """Any entry may be zero.

    Args:
        per: Whether the count holds for the whole tensor or for each output row.

    Example:
        >>> import torch
        >>> Unstructured().mask(torch.tensor([[1.0, 4.0], [3.0, 2.0]]), density=0.5)
        tensor([[False,  True],
                [ True, False]])
    """

    per: Literal["tensor", "row"] = "tensor"

    def __post_init__(self) -> None:
        if self.per not in ("tensor", "row"):
            raise InvalidValue(f'Unstructured(per={self.per!r}): per must be "tensor" or "row"')

    def mask(self, scores: Tensor, density: float) -> Tensor:
        """Returns the mask that keeps `count(numel, density)` entries, of all or of each row."""
        check_density(density)
        if self.per == "row":
            return keep_largest_per_row(scores, count(scores.shape[1], density))
        return keep_largest([scores], count(scores.numel(), density))[0]

    def global_masks(self, scores: Sequence[Tensor], density: float) -> list[Tensor]:
        """Returns the masks that keep the highest scores over all matrices together."""
        if self.per == "row":
            return [self.mask(each, density) for each in scores]
        return keep_largest(scores, count(sum(s.numel() for s in scores), density))

    def __str__(self) -> str:
        return "unstructured" if self.per == "tensor" else "row"


@dataclass(frozen=True)
class NM(Pattern):
    """Keeps `keep` of every `of` consecutive inputs of each output.

    Libraries disagree on what N counts; here it is always what is kept.

    Args:
        keep: How many stay in each group.
        of: The size of a group.

    Example:
        >>> NM(keep=1, of=4).fixed_density
        0.25
    """

    keep: int = 2
    of: int = 4

    def __post_init__(self) -> None:
        if not (isinstance(self.keep, int) and isinstance(self.of, int)):
            raise InvalidValue(f"NM(keep={self.keep!r}, of={self.of!r}): both must be integers")
        if not 1 <= self.keep <= self.of:
            raise InvalidValue(
                f"NM(keep={self.keep}, of={self.of}): keep must be from 1 to of. "
                "keep counts the weights that stay, not those that go."
            )

    @property
    def fixed_density(self) -> float:
        """The fraction keep / of."""
        return self.keep / self.of

    def check(self, shape: tuple[int, ...], name: str = "weight") -> None:
        """Raises InvalidValue unless `of` divides the number of inputs."""
        if shape[1] % self.of:
            raise InvalidValue(
                f"{name}: {self.keep}:{self.of} needs a multiple of {self.of} inputs, "
                f"but the layer has {shape[1]}. Leave it out of the targets, or choose an N:M "
                f"whose M divides {shape[1]}."
            )

    def mask(self, scores: Tensor, density: float | None = None) -> Tensor:
        """Returns the mask that keeps the `keep` highest scores of each group."""
        if density is not None and abs(density - self.fixed_density) > 1e-9:
            raise InvalidValue(
                f"{self.keep}:{self.of} implies sparsity {1 - self.fixed_density:g}, "
                f"but {1 - density:g} was asked. Give one of the two."
            )
        self.check((scores.shape[0], scores.shape[1]))
        return nm_mask(scores, self.keep, self.of)

    def global_masks(self, scores: Sequence[Tensor], density: float) -> list[Tensor]:
        """Returns the mask of each matrix; every group has the same budget anyway."""
        return [self.mask(each, density) for each in scores]

    def __str__(self) -> str:
        return f"{self.keep}:{self.of}"


@dataclass(frozen=True)
class Block(Pattern):
    """Keeps or removes whole blocks of `rows` x `cols` entries, by the sum of their scores."""

    rows: int = 4
    cols: int = 4

    def __post_init__(self) -> None:
        if self.rows < 1 or self.cols < 1:
            raise InvalidValue(f"Block(rows={self.rows}, cols={self.cols}): both must be >= 1")

    def check(self, shape: tuple[int, ...], name: str = "weight") -> None:
        """Raises InvalidValue unless the blocks tile the matrix."""
        columns = math.prod(shape[1:])
        if shape[0] % self.rows or columns % self.cols:
            raise InvalidValue(
                f"{name}: blocks of {self.rows}x{self.cols} do not tile a matrix of "
                f"{shape[0]}x{columns}. Choose sizes that divide it, or leave the layer out."
            )

    def mask(self, scores: Tensor, density: float) -> Tensor:
        """Returns the mask that keeps the best `count(blocks, density)` blocks."""
        return self.global_masks([scores], density)[0]

    def global_masks(self, scores: Sequence[Tensor], density: float) -> list[Tensor]:
        """Returns the masks that keep the best blocks over all matrices together."""
        check_density(density)
        for each in scores:
            self.check((each.shape[0], each.shape[1]))
        sums = [block_sums(each, self.rows, self.cols) for each in scores]
        kept = keep_largest(sums, count(sum(s.numel() for s in sums), density))
        return [expand_blocks(keep, self.rows, self.cols) for keep in kept]

    def __str__(self) -> str:
        return f"block:{self.rows}x{self.cols}"


@dataclass(frozen=True)
class Channels(Pattern):
    """Keeps or removes whole rows (outputs) or columns (inputs), by the sum of their scores."""

    dim: Literal["out", "in"] = "out"

    def __post_init__(self) -> None:
        if self.dim not in ("out", "in"):
            raise InvalidValue(f'Channels(dim={self.dim!r}): dim must be "out" or "in"')

    def mask(self, scores: Tensor, density: float) -> Tensor:
        """Returns the mask that keeps the best `count(channels, density)` channels, at least 1."""
        check_density(density)
        axis = 0 if self.dim == "out" else 1
        sums = scores.sum(1 - axis)
        keep = keep_largest([sums], max(1, count(sums.numel(), density)))[0]
        return keep.unsqueeze(1 - axis).expand_as(scores).clone()

    def __str__(self) -> str:
        return f"channels:{self.dim}"


def parse_pattern(text: str | Pattern) -> Pattern:
    """Returns the pattern that a short text names.

    Args:
        text: "unstructured", "row", "2:4" (keep 2 of 4), "block:4x4", "channels:out" or
            "channels:in"; a Pattern is returned as it is.

    Raises:
        UnknownName: Naming the closest form.

    Example:
        >>> parse_pattern("1:4")
        NM(keep=1, of=4)
    """
    if isinstance(text, Pattern):
        return text
    plain: dict[str, Pattern] = {
        "unstructured": Unstructured(),
        "row": Unstructured(per="row"),
        "channels:out": Channels("out"),
        "channels:in": Channels("in"),
    }
    if text in plain:
        return plain[text]
    if found := re.fullmatch(r"(\d+):(\d+)", text):
        return NM(keep=int(found[1]), of=int(found[2]))
    if found := re.fullmatch(r"block:(\d+)x(\d+)", text):
        return Block(rows=int(found[1]), cols=int(found[2]))
    raise UnknownName("pattern", text, [*plain, "2:4", "4:8", "block:4x4"])


def as_matrix(weight: Tensor) -> Tensor:
    """Returns a weight (outputs, inputs, *kernel) as a matrix (outputs, everything else).

    The columns of a convolution are its kernel positions one after the other, each with all input
    channels, so that groups of neighbouring columns run along the input channels.

    Example:
        >>> import torch
        >>> as_matrix(torch.arange(4).view(1, 2, 2))
        tensor([[0, 2, 1, 3]])
    """
    return weight if weight.dim() == 2 else weight.movedim(1, -1).flatten(1)


def from_matrix(matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Returns the weight of this shape whose matrix it is; what `as_matrix` undoes."""
    if len(shape) == 2:
        return matrix
    last = matrix.reshape(shape[0], *shape[2:], shape[1])
    return last.movedim(-1, 1)
