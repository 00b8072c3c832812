"""Magnitude pruning, in each layer and over all of them: the baselines to beat.

Small weights matter least: Han et al. (2015) remove them and retrain. Jaiswal et al. (2023) remove
the smallest of all transformer blocks together, once, and fine-tune what is left. They find that
30 to 50 % of a pre-trained model can go without loss, the "essential sparsity".

The official code of paper 28 prunes one weight more than the ratio asks, by a threshold with <=;
here the count is exact, also where magnitudes tie.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from sparsecraft.core import scores
from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.kinds import Layer, Layerwise, ModelContext, ModelWide, Pruned
from sparsecraft.core.mask import count
from sparsecraft.core.patterns import Unstructured
from sparsecraft.kernels.selection import keep_largest


@method(
    "magnitude",
    paper=Paper(
        "Han et al.",
        2015,
        "1506.02626",
        title="Learning both Weights and Connections for Efficient Neural Networks",
    ),
    taxonomy=Taxonomy(
        of="weights",
        when="after training",
        start_to_end="dense to sparse",
        mask="static",
        criterion="magnitude",
        granularity=("unstructured", "N:M", "block", "channel"),
        allocation="any",
        budget="hard per layer",
        needs=("pretrained model", "dense weights"),
        cost="one selection in each layer",
        runtime="storage",
    ),
)
@dataclass(frozen=True, kw_only=True)
class Magnitude(Layerwise):
    """Keeps the largest weights of each layer.

    Reference:
        Han et al., 2015, arXiv 1506.02626.
    """

    def prune(self, weight: Tensor, layer: Layer) -> Pruned:
        """Returns the matrix with its smallest entries removed."""
        scores.check_finite(weight, f"{layer.name}: the weight")
        return Pruned.keeping(weight, self.pattern.mask(scores.magnitude(weight), layer.density))


@method(
    "global_magnitude",
    paper=Paper(
        "Jaiswal et al.",
        2023,
        "2306.03805",
        number=13,
        title="The Emergence of Essential Sparsity in Large Pre-trained Models",
    ),
    taxonomy=Taxonomy(
        of="weights",
        when="after training",
        start_to_end="dense to sparse",
        mask="static",
        criterion="magnitude",
        granularity=("unstructured", "N:M", "block"),
        allocation="global",
        budget="hard global",
        needs=("pretrained model", "dense weights"),
        cost="one selection over all layers",
        runtime="none",
    ),
)
@dataclass(frozen=True, kw_only=True)
class GlobalMagnitude(ModelWide):
    """Keeps the largest weights of all layers together (one-shot magnitude pruning, OMP).

    Reference:
        Jaiswal et al., 2023, arXiv 2306.03805, section 3.
    """

    def prune(self, weights: Mapping[str, Tensor], context: ModelContext) -> dict[str, Pruned]:
        """Returns every matrix with the smallest entries of all of them removed."""
        for name, weight in weights.items():
            scores.check_finite(weight, f"{name}: the weight")
        if self.pattern != Unstructured():
            return self.globally(weights, {n: scores.magnitude(w) for n, w in weights.items()})
        # The selection takes magnitudes as it reads, so that no second copy of the model is made.
        total = sum(weight.numel() for weight in weights.values())
        masks = keep_largest(list(weights.values()), count(total, self.density), absolute=True)
        return {
            name: Pruned.keeping(weight, mask)
            for (name, weight), mask in zip(weights.items(), masks, strict=True)
        }
