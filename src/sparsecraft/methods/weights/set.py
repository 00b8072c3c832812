"""SET, sparse evolutionary training: drop the smallest weights, grow random ones.

Mocanu et al. (2018) begin with a random sparse network and let it evolve: at intervals the
weights nearest to zero are removed and as many new ones appear at random places. The number of
weights never changes. No gradient of what is not there is ever needed.

The paper drops a constant fraction, after each epoch, of the negative and of the positive weights
separately. Here one fraction of the smallest magnitudes goes, at intervals of steps, and falls to
zero, as in the code of Sparse-IFT (2303.11525); `anneal="constant"` keeps it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.drop_grow import random_scores
from sparsecraft.core.kinds import Clock, Tensors, TrainedLayer
from sparsecraft.methods.weights.prune_and_grow import PruneAndGrow


@method(
    "set",
    paper=Paper(
        "Mocanu et al.",
        2018,
        "1707.04780",
        title="Scalable Training of Artificial Neural Networks with Adaptive Sparse Connectivity",
    ),
    taxonomy=Taxonomy(
        of="weights",
        when="during training",
        start_to_end="sparse to sparse",
        mask="dynamic",
        criterion="magnitude",
        granularity=("unstructured",),
        allocation="any",
        budget="hard per layer",
        needs=("data",),
        cost="sparse steps throughout",
        runtime="FLOPs",
    ),
)
@dataclass(frozen=True, kw_only=True)
class SET(PruneAndGrow):
    """Drops the smallest weights at intervals and grows as many at random.

    Reference:
        Mocanu et al., 2018, arXiv 1707.04780, algorithm 1.
    """

    def scores(
        self, layer: TrainedLayer, gradients: Tensors, weight: Tensor, clock: Clock
    ) -> Tensor:
        """Returns random scores, from the layer's own stream for this step."""
        return random_scores(layer.shape, layer.generator("grow", clock.done)).to(weight.device)
