"""Gradual magnitude pruning: the smallest weights go little by little while the network trains.

Zhu and Gupta (2017) begin dense and raise the sparsity by a cubic curve: fast at first, while much
is redundant, slowly at the end. After each cut the network trains on and recovers. It is the
simplest way from dense to sparse, and hard to beat (Gale et al., 2019).

In the original a cut weight keeps its value and may return; here it stays zero, so that each mask
is a part of the one before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from torch import Tensor

from sparsecraft.core.allocation import Allocation, Uniform
from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.kinds import Clock, InTraining, Layers, Tensors, WeightMethod
from sparsecraft.core.patterns import as_matrix, from_matrix
from sparsecraft.core.schedules import Cubic
from sparsecraft.core.scores import check_finite

Scope = Literal["layer", "global"]


@method(
    "gradual_magnitude",
    paper=Paper(
        "Zhu, Gupta",
        2017,
        "1710.01878",
        title="To prune, or not to prune: exploring the efficacy of pruning for model compression",
    ),
    taxonomy=Taxonomy(
        of="weights",
        when="during training",
        start_to_end="dense to sparse",
        mask="shrinking",
        criterion="magnitude",
        granularity=("unstructured", "block", "channel"),
        allocation="any",
        budget="hard per layer",
        needs=("data", "dense weights"),
        cost="one training, dense at first",
        runtime="storage",
    ),
)
@dataclass(frozen=True, kw_only=True)
class GradualMagnitude(InTraining, WeightMethod):
    """Removes the smallest weights at intervals, by a cubic schedule, while the rest trains.

    Args:
        allocation: How the budget is shared between the layers, at every density on the way.
        scope: "layer" ranks within each layer, "global" over all of them.
        begin_at: Fraction of the training after which pruning begins.
        end_at: Fraction of the training at which the sparsity is reached.
        every: Fraction of the training from one cut to the next.

    Reference:
        Zhu, Gupta, 2017, arXiv 1710.01878, eq. 1.
    """

    allocation: Allocation = field(default_factory=Uniform)
    scope: Scope = "layer"
    begin_at: float = 0.0
    end_at: float = 0.75
    every: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pattern.fixed_density is not None:
            raise InvalidValue(
                f"the pattern {self.pattern} has one density, so that there is nothing gradual "
                "about it. Use sdgf, which goes through looser patterns, or mdgf."
            )
        if self.scope not in get_args(Scope):
            raise UnknownName("scope", self.scope, get_args(Scope))
        if self.scope == "global" and self.allocation != Uniform():
            raise InvalidValue(
                f"scope='global' shares the budget by magnitude; allocation={self.allocation} "
                "would not be heard. Leave it out, or use scope='layer'."
            )
        if not 0 <= self.begin_at <= self.end_at <= 1 or self.end_at == 0:
            raise InvalidValue(
                f"pruning from {self.begin_at:g} to {self.end_at:g} of the training: give "
                "fractions with 0 <= begin_at <= end_at <= 1, end_at above 0"
            )
        if not 0 < self.every <= 1:
            raise InvalidValue(
                f"every={self.every:g} is not allowed: it is a fraction of the training, in (0, 1]"
            )

    def schedule(self, total: int) -> Cubic:
        """Returns the density by step, for a training of `total` steps."""
        end = max(1, round(self.end_at * total))
        return Cubic(
            final=self.density,
            begin=min(round(self.begin_at * total), end),
            end=end,
            every=max(1, round(self.every * total)),
        )

    def due(self, clock: Clock) -> bool:
        """Returns whether weights are removed at the end of this step."""
        return self.schedule(clock.total).due(clock.done)

    def update_masks(
        self, weights: Tensors, gradients: Tensors, layers: Layers, clock: Clock
    ) -> dict[str, Tensor]:
        """Returns the masks of this step's density, each a part of the one before."""
        density = self.schedule(clock.total).density(clock.done)
        ranked = {}
        for name, layer in layers.items():
            check_finite(weights[name], f"{name}: the weight")
            magnitude = weights[name].abs()
            # A survivor may be exactly zero; what is pruned must still come after it.
            ranked[name] = (
                magnitude if layer.mask is None else magnitude.masked_fill_(~layer.mask, -1.0)
            )
        if self.scope == "global":
            masks = self.pattern.global_masks([as_matrix(r) for r in ranked.values()], density)
            return {n: from_matrix(m, layers[n].shape) for n, m in zip(ranked, masks, strict=True)}
        shares = self.allocation({n: layer.shape for n, layer in layers.items()}, density)
        return {name: self.pattern.tensor_mask(r, shares[name]) for name, r in ranked.items()}
