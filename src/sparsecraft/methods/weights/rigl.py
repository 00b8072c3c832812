"""RigL: drop the smallest weights, grow those that the gradient asks for.

Evci et al. (2020) train a sparse network from the start. At intervals the smallest weights of each
layer are dropped, and as many grown where the gradient of the loss is largest, from zero. The
dense gradient that this takes is needed at these steps only.

The order is that of the Sparse-IFT code (2303.11525): the weight step is taken on update
iterations too, where the RigL paper skips it; the gradient is that of the same iteration; what was
just dropped may be grown again.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.iso_flop import rigl_step_flops
from sparsecraft.core.kinds import Clock, Tensors, TrainedLayer
from sparsecraft.core.scores import check_finite
from sparsecraft.methods.weights.prune_and_grow import PruneAndGrow


@method(
    "rigl",
    paper=Paper(
        "Evci et al.",
        2020,
        "1911.11134",
        title="Rigging the Lottery: Making All Tickets Winners",
    ),
    taxonomy=Taxonomy(
        of="weights",
        when="during training",
        start_to_end="sparse to sparse",
        mask="dynamic",
        criterion="gradient",
        granularity=("unstructured",),
        allocation="any",
        budget="hard per layer",
        needs=("data", "gradients"),
        cost="sparse steps, with a dense backward pass where the mask changes",
        runtime="FLOPs",
    ),
)
@dataclass(frozen=True, kw_only=True)
class RigL(PruneAndGrow):
    """Drops the smallest weights at intervals and grows those of largest gradient.

    Reference:
        Evci et al., 2020, arXiv 1911.11134, section 3.
    """

    dense_gradients = True

    def scores(
        self, layer: TrainedLayer, gradients: Tensors, weight: Tensor, clock: Clock
    ) -> Tensor:
        """Returns the magnitude of the dense gradient of this step."""
        check_finite(gradients[layer.name], f"{layer.name}: the gradient")
        return gradients[layer.name].abs()

    def flops_of_step(self, sparse: float, dense: float, total: int) -> float:
        """Returns the operations of a training step, on average, dense gradients included.

        Args:
            sparse: Operations of the sparse network's forward pass.
            dense: Operations of the same network's forward pass without zeros.
            total: Steps of the training, which fix the interval of the updates.

        Example:
            >>> RigL(every=99).flops_of_step(10.0, 100.0, total=1000)
            30.9

        Reference:
            Evci et al., 2020, arXiv 1911.11134, appendix H.
        """
        return rigl_step_flops(sparse, dense, self.interval(total))
