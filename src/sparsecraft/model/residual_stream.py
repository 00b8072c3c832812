"""The residual stream of a decoder: what writes to it, what reads it, and through which norms.

Parameters are named whose last axis is the stream (readers) or whose last but one is (writers), so
that a linear layer and stacked experts are turned by the same products.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sparsecraft.model.rms_norm import RMSGain


@dataclass(frozen=True)
class Part:
    """Rows of a parameter (..., outputs, width), all of them where `rows` is None."""

    parameter: str
    rows: int | None = None

    def matrix(self, parameter: Tensor) -> Tensor:
        """Returns the first rows as one matrix (rows, width), of all experts where stacked."""
        return parameter[..., : self.rows, :].reshape(-1, parameter.shape[-1])


@dataclass(frozen=True)
class Sublayer:
    """An attention or an MLP with the norm before it.

    Args:
        name: The module.
        norm: The norm's name.
        gain: How the norm's weight scales.
        readers: Parameters (..., outputs, width) that multiply the normed stream.
        writers: Parameters (..., width, inputs) whose products are added to the stream.
        biases: Parameters (..., width) that are added to it.
        pivot: What the rotation makes column-orthogonal.
    """

    name: str
    norm: str
    gain: RMSGain
    readers: tuple[str, ...]
    writers: tuple[str, ...]
    biases: tuple[str, ...]
    pivot: Part

    @property
    def orthogonal(self) -> str | None:
        """The layer whose own columns become orthogonal; None for experts, stacked for it."""
        return self.pivot.parameter.removesuffix(".weight") if self.pivot.rows is None else None


@dataclass(frozen=True)
class Stream:
    """The whole residual stream.

    Args:
        width: Its entries.
        embeddings: Parameters (tokens, width) that begin it.
        blocks: Name of each block, its attention and its MLP.
        norm: The last norm.
        gain: How its weight scales.
        heads: Parameters (outputs, width) that read it.
    """

    width: int
    embeddings: tuple[str, ...]
    blocks: tuple[tuple[str, Sublayer, Sublayer], ...]
    norm: str
    gain: RMSGain
    heads: tuple[str, ...]
