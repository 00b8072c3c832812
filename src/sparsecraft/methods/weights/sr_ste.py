"""SR-STE: N:M training in which masked weights are pulled towards zero.

Zhou et al. (2021) see that under a straight-through gradient the mask keeps flipping. They add the
masked weights themselves, times a small constant, to the gradient, so that what is cut shrinks and
the choice settles. It is the usual way to train N:M networks from scratch.

The term is a part of the gradient that the optimiser sees, and so passes through its moments; it
is added once for each optimiser step, whatever the number of accumulated batches.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.kinds import Clock, TrainedLayer
from sparsecraft.methods.weights.straight_through import ForwardMasked


@method(
    "sr_ste",
    paper=Paper(
        "Zhou et al.",
        2021,
        "2102.04010",
        title="Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch",
    ),
    taxonomy=Taxonomy(
        of="weights",
        when="during training",
        start_to_end="dense to sparse",
        mask="dynamic",
        criterion="magnitude",
        granularity=("N:M", "unstructured", "block", "channel"),
        allocation="uniform",
        budget="hard per layer",
        needs=("data", "gradients", "dense weights"),
        cost="dense gradients and a selection in every forward pass",
        runtime="none",
    ),
)
@dataclass(frozen=True, kw_only=True)
class SRSTE(ForwardMasked):
    """Computes with the largest weights of each group and shrinks the others.

    Args:
        shrinkage: What the masked weights are multiplied by before they are added to the
            gradient (lambda_W), at least 0; at 0 it is STE.

    Reference:
        Zhou et al., 2021, arXiv 2102.04010, eq. 9.
    """

    shrinkage: float = 2e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shrinkage < 0:
            raise InvalidValue(
                f"shrinkage={self.shrinkage:g} would make masked weights grow; give 0 or more"
            )

    def edit_gradient(
        self, weight: Tensor, gradient: Tensor, layer: TrainedLayer, clock: Clock
    ) -> Tensor:
        """Returns the gradient plus shrinkage * (1 - m) * W."""
        mask = self.mask_now(weight, layer, clock)
        if mask is None:
            return gradient
        return gradient.add_(weight.masked_fill(mask, 0), alpha=self.shrinkage)
