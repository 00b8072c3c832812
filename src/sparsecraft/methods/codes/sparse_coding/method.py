"""Sparse coding as an activation: an encoder whose every step is a penalty's prox.

Olshausen and Field's coding is a proximal gradient descent; unrolled for a few steps, with the
encoder trained along, it is an autoencoder (Gregor and LeCun, 2010). Any penalty of single entries
can be chosen: those that Rentzeperis et al. (2023) compare are l1 (soft), l0 (hard), lq at 1/2
(half) and cel0. Codes that are solved to the end, and dictionaries learned from them as in the
paper, are `SparseCoder` and `DictionaryLearning`.

The step's length is one for an encoder of a single step, whose matrix learns the scale; beyond, it
is 1 / (||decoder|| ||encoder||) unless given. With a tied encoder that is 1 / ||decoder||^2, by
which steps settle; one that is not tied follows no gradient, and no length is sure to settle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.code import Code
from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.kinds import CodeStep, Elementwise, Own
from sparsecraft.core.penalties import Penalty, by_name
from sparsecraft.core.solvers import lipschitz

ENTRYWISE = ("l1", "l0", "lq", "log", "cel0", "mcp", "scad")


@method(
    "sparse_coding",
    paper=Paper(
        "Rentzeperis et al.",
        2023,
        "2301.10002",
        number=9,
        title="Beyond l1 sparse coding in V1",
    ),
    taxonomy=Taxonomy(
        of="codes",
        when="during training",
        start_to_end="dense to sparse",
        mask="input-dependent",
        criterion="optimisation-based",
        granularity=("unstructured",),
        allocation="any",
        budget="soft",
        needs=("data",),
        cost="one training of the dictionary",
        runtime="FLOPs",
    ),
)
@dataclass(frozen=True, kw_only=True)
class SparseCoding(Elementwise):
    """Thresholds signed pre-activations by the prox of a penalty, once or step after step.

    Args:
        penalty: "l1", "l0", "lq" (with q = 1/2), "log", "cel0", "mcp" or "scad", each with its
            default shape.
        strength: Of the penalty, in the convention with 1/2; at least 0.
        step: Length of the gradient's steps, or None: one for a single step, else
            1 / (||decoder|| ||encoder||), which settles where the encoder is tied.

    Example:
        >>> import torch
        >>> u = torch.tensor([[0.5, -2.0]])
        >>> SparseCoding(penalty="l1", strength=1.0).apply(u, Own(torch.zeros(2))).tolist()
        [[0.0, -1.0]]

    Reference:
        Rentzeperis et al., 2023, arXiv 2301.10002, methods; Gregor and LeCun, 2010, ICML.
    """

    signed = True
    penalty: str = "cel0"
    strength: float = 0.1
    step: float | None = None

    def __post_init__(self) -> None:
        if self.penalty not in ENTRYWISE:
            raise UnknownName("penalty of sparse coding", str(self.penalty), ENTRYWISE)
        if self.step is not None and not 0 < self.step < math.inf:
            raise InvalidValue(f"step={self.step!r} is not allowed: give a number above 0, or None")
        by_name(self.penalty, strength=self.strength)

    @cached_property
    def _prox_of(self) -> Penalty:
        return by_name(self.penalty, strength=self.strength)

    def apply(self, u: Tensor, own: Own) -> Tensor:
        """Returns the prox of the pre-activations, after a step of length one or as given."""
        step = 1.0 if self.step is None else self.step
        return self._prox_of.prox(step * u, step)

    def iterate(self, u: Tensor, own: Own, encoder: Tensor, decoder: Tensor, steps: int) -> Tensor:
        """Returns the code after proximal gradient steps from zero."""
        if steps == 1:
            return self.apply(u, own)
        step = self.step
        if step is None:
            step = 1 / math.sqrt(lipschitz(decoder.detach()) * lipschitz(encoder.detach()))
        z = self._prox_of.prox(step * u, step)
        for _ in range(steps - 1):
            z = self._prox_of.prox(z + step * (u - (z @ decoder) @ encoder), step)
        return z

    def losses(self, step: CodeStep, own: Own) -> dict[str, Tensor]:
        """Returns the penalty of the code, a mean over rows; counts have no gradient."""
        z = step.z.values if isinstance(step.z, Code) else step.z
        rows = len(step.x)
        return {"penalty": step.warmth * self._prox_of.value(z) / rows}
