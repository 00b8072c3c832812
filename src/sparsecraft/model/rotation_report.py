"""What a rotation did and costs: products and bytes on the shortcuts, and how exact it came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RotationReport:
    """What was done and what it costs.

    Args:
        width: Of the residual stream.
        blocks: How many were rotated.
        parameters: Of the model before, without the copy that untying makes.
        embeddings: Those among them that are looked up instead of multiplied with.
        shortcuts: Weights of the shortcuts.
        untied: Weights of the head, if it had been tied to the embedding and is no more.
        bytes_each: Bytes of one weight.
        off_diagonal: Of each layer with orthogonal columns, the largest product of two of them
            over the largest squared norm, as its weights are now.
        difference: The largest change of a logit on random tokens.
        scale: The largest logit there.
        experts: MLPs of stacked experts, rotated but with no layer of orthogonal columns.
    """

    width: int
    blocks: int
    parameters: int
    embeddings: int
    shortcuts: int
    untied: int
    bytes_each: int
    off_diagonal: Mapping[str, float]
    difference: float
    scale: float
    experts: tuple[str, ...] = ()

    @property
    def extra_flops(self) -> int:
        """Floating-point operations that a token costs more: two for each shortcut weight."""
        return 2 * self.shortcuts

    @property
    def extra_bytes(self) -> int:
        """Bytes that the model takes more."""
        return self.bytes_each * (self.shortcuts + self.untied)

    @property
    def extra_share(self) -> float:
        """The shortcuts' products over those of all other matrices."""
        return self.shortcuts / (self.parameters + self.untied - self.embeddings)

    @property
    def notes(self) -> tuple[str, ...]:
        """Everything that a user should know of it, in plain words."""
        found = [
            f"rotated {self.blocks} blocks of width {self.width}: the shortcuts add "
            f"{self.shortcuts} weights ({self.bytes_each * self.shortcuts} bytes, "
            f"{self.extra_share:.1%} more products for each token); logits moved by at most "
            f"{self.difference:.2g} (the largest is {self.scale:.2g})"
        ]
        if self.untied:
            found.append(
                f"embedding and head were one matrix and are now two: {self.untied} weights more "
                f"({self.bytes_each * self.untied} bytes)"
            )
        if self.experts:
            found.append(
                f"{', '.join(self.experts)}: the experts share one rotation, of all their gates "
                "together, so no single expert has orthogonal columns"
            )
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values."""
        return {
            **asdict(self),
            "extra_flops": self.extra_flops,
            "extra_bytes": self.extra_bytes,
            "notes": list(self.notes),
        }


def off_diagonal(weight: Tensor) -> float:
    """Returns the largest |product| of two columns over the largest squared norm of one.

    Args:
        weight: (outputs, inputs).

    Example:
        >>> import torch
        >>> off_diagonal(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        0.0
    """
    gram = weight.detach().double().T @ weight.detach().double()
    squares = gram.diagonal().clone()
    largest = float(squares.max())
    return float((gram - squares.diag()).abs().max()) / largest if largest else 0.0
