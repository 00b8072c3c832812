"""STE: N:M weights by magnitude, with the gradient straight through the mask.

The plainest way to train under an N:M pattern: compute with the largest weights of each group,
update all of them by the gradient of what was computed. A masked weight drifts by gradients that
are not its own, and comes back when it has grown large enough. Beyond about 80 % sparsity this
noise costs accuracy (Bambhaniya et al., 2024), which SR-STE and the decays are made against.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.methods.weights.straight_through import ForwardMasked


@method(
    "ste",
    paper=Paper(
        "Bengio, Leonard, Courville",
        2013,
        "1308.3432",
        title="Estimating or Propagating Gradients Through Stochastic Neurons",
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
class STE(ForwardMasked):
    """Computes with the largest weights of each group; the gradient reaches all of them.

    Reference:
        Bengio, Leonard, Courville, 2013, arXiv 1308.3432, section 4.
    """
