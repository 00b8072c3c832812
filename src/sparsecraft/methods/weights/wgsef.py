"""WGSEF: trains a network with k neurons, filters or other groups, k being what the user says.

Refael, Arbel and Huleihel (2022) regularise by the convex envelope of "half the squared norm if at
most k groups are not zero, else infinite". Its prox costs as much as finding k-th largest norms, so
it follows every step of SGD; one strength then works for every k, where group lasso needs a search.
For their main figures they go over to half-space steps (HSPG) halfway through.

No official code was found. Steps go by the learning rate times the strength; momentum runs on the
gradient, and the moments of zero groups are cleared, since they would bring them back against the
prox. What is not here is AdaHSPG+, which chooses between the two stages step by step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.errors import UnknownName
from sparsecraft.core.group_envelope import (
    WEIGHTINGS,
    GroupEnvelope,
    Weighting,
    batched_factors,
    weights_of,
)
from sparsecraft.core.kinds import Clock
from sparsecraft.methods.weights.group_prox import Pool, RegularisedGroups


@method(
    "wgsef",
    paper=Paper(
        "Refael, Arbel, Huleihel",
        2022,
        "2212.12921",
        number=16,
        title="Learning k-Level Structured Sparse Neural Networks Using Group Envelope "
        "Regularization",
    ),
    taxonomy=Taxonomy(
        of="weights",
        when="during training",
        start_to_end="dense to sparse",
        mask="dynamic",
        criterion="optimisation-based",
        granularity=("neuron", "channel", "group", "layer", "unstructured"),
        allocation="uniform",
        budget="hard per layer",
        needs=("data", "retraining"),
        cost="one training, with one prox over the groups after each step",
        runtime="wall-clock",
    ),
)
@dataclass(frozen=True, kw_only=True)
class WGSEF(RegularisedGroups):
    """Trains with a convex penalty that asks for at most k groups in each layer.

    The smaller network, which computes the same:
    `remove_zero_groups(model, find_groups(model, "neuron"))` of `sparsecraft.model.group_builders`.

    Args:
        weights: Weight of each group in the penalty: "one", "size", "sqrt_size" or "inverse_size".

    Reference:
        Refael, Arbel, Huleihel, 2022, arXiv 2212.12921; half-space steps: Chen et al., 2020, arXiv
        2009.12078, algorithm 3.
    """

    strength: float = 0.3
    weights: Weighting = "one"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights not in WEIGHTINGS:
            raise UnknownName("weighting of groups", str(self.weights), WEIGHTINGS)

    def factors(self, pools: Sequence[Pool], norms: Sequence[Tensor], clock: Clock) -> list[Tensor]:
        """Returns the prox factors of all layers, their roots found together."""
        penalties = [self._penalty(pool) for pool in pools]
        sizes = [pool.sizes.to(each) for pool, each in zip(pools, norms, strict=True)]
        return batched_factors(penalties, norms, clock.rate, sizes)

    def gradient_factors(self, pool: Pool, norms: Tensor) -> Tensor:
        """Returns strength * d_j / u_j."""
        return self._penalty(pool).gradient_factors(norms, pool.sizes.to(norms))

    def scores(self, norms: Tensor, sizes: Tensor) -> Tensor:
        """Returns sqrt(d_j) times the norm, the order in which the penalty values groups."""
        return norms * weights_of(self.weights, sizes.to(norms)).sqrt()

    def _penalty(self, pool: Pool) -> GroupEnvelope:
        return GroupEnvelope(k=pool.k, strength=self.strength, weights=self.weights)
