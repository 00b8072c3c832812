"""Group lasso and group hard thresholding: what WGSEF is compared with.

Group lasso (Yuan and Lin, 2006) shrinks every group by a threshold after each step, so that the
smaller ones vanish; how many stay follows from the strength, which has to be searched. Iterative
hard thresholding (Blumensath and Davies, 2009) keeps the k largest after each step instead; groups
return where the gradient of a zero group is large enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.kinds import Clock
from sparsecraft.core.penalties import GroupL2, GroupTopK
from sparsecraft.methods.weights.group_prox import GroupMethod, Pool, RegularisedGroups

_GRANULARITY = ("neuron", "channel", "group", "layer", "unstructured")


@method(
    "group_lasso",
    paper=Paper(
        "Yuan, Lin",
        2006,
        title="Model selection and estimation in regression with grouped variables",
    ),
    taxonomy=Taxonomy(
        of="weights",
        when="during training",
        start_to_end="dense to sparse",
        mask="dynamic",
        criterion="optimisation-based",
        granularity=_GRANULARITY,
        allocation="uniform",
        budget="hard per layer",
        needs=("data", "retraining"),
        cost="one training for each strength tried",
        runtime="wall-clock",
    ),
)
@dataclass(frozen=True, kw_only=True)
class GroupLasso(RegularisedGroups):
    """Shrinks whole groups towards zero while training, then keeps the k largest.

    Args:
        strength: Of the sum of sqrt(size) times norm.

    Reference:
        Yuan, Lin, 2006, Journal of the Royal Statistical Society B 68, eq. 2.
    """

    strength: float = 0.01

    def factors(self, pools: Sequence[Pool], norms: Sequence[Tensor], clock: Clock) -> list[Tensor]:
        """Returns max(0, 1 - rate * strength * sqrt(size) / norm)."""
        penalty = GroupL2(strength=self.strength)
        return [
            penalty.factors(each, clock.rate, pool.sizes.to(each))
            for pool, each in zip(pools, norms, strict=True)
        ]

    def gradient_factors(self, pool: Pool, norms: Tensor) -> Tensor:
        """Returns strength * sqrt(size) / norm."""
        return GroupL2(strength=self.strength).gradient_factors(norms, pool.sizes.to(norms))


@method(
    "group_iht",
    paper=Paper(
        "Blumensath, Davies", 2009, "0805.0510", title="Iterative hard thresholding for "
        "compressed sensing",
    ),
    taxonomy=Taxonomy(
        of="weights",
        when="during training",
        start_to_end="dense to sparse",
        mask="dynamic",
        criterion="magnitude",
        granularity=_GRANULARITY,
        allocation="uniform",
        budget="hard per layer",
        needs=("data", "retraining"),
        cost="one training",
        runtime="wall-clock",
    ),
)  # fmt: skip
@dataclass(frozen=True, kw_only=True)
class GroupIHT(GroupMethod):
    """Keeps the k groups of largest norm after every step; zero groups may return.

    Reference:
        Blumensath, Davies, 2009, arXiv 0805.0510, eq. 10.
    """

    def factors(self, pools: Sequence[Pool], norms: Sequence[Tensor], clock: Clock) -> list[Tensor]:
        """Returns 1 for the k largest norms, else 0."""
        return [
            GroupTopK(k=pool.k).factors(each, clock.rate)
            for pool, each in zip(pools, norms, strict=True)
        ]
