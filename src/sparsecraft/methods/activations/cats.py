"""CATS: drops what the activation function of a gated MLP gives near zero.

Lee et al. (2024) saw that SiLU gives mostly small values in gated MLPs, and set those under a
threshold to zero, which spares the matching rows of the up matrix and columns of the down matrix;
the gate matrix stays dense. The threshold of each block is fixed on calibration data. It works
without training; gradients pass through what is kept, so that a model can also be fine-tuned.

Departure: the official histogram ends at 1, which makes its threshold too small where activations
are larger; here thresholds are exact quantiles of the magnitudes.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.errors import check_sparsity
from sparsecraft.core.gating import ActivationGate
from sparsecraft.core.kinds import DEFAULT_SPARSITY, Gate, GateSite


@method(
    "cats",
    paper=Paper(
        "Lee et al.",
        2024,
        "2404.08763",
        title="CATS: Contextually-Aware Thresholding for Sparsity in Large Language Models",
    ),
    taxonomy=Taxonomy(
        of="activations",
        when="at inference",
        start_to_end="dense to dense",
        mask="input-dependent",
        criterion="magnitude",
        granularity=("unstructured", "neuron"),
        allocation="uniform",
        budget="soft",
        needs=("data", "pretrained model"),
        cost="one forward pass over the calibration data",
        runtime="FLOPs",
    ),
)
@dataclass(frozen=True, kw_only=True)
class CATS(Gate):
    """Drops the neurons of gated MLPs whose activation is near zero, token by token.

    Args:
        sparsity: Fraction of the neurons of each gated MLP to drop, in [0, 1).
        layer_wise: Calibrate each block on what comes through the gated blocks before it, instead
            of on dense inputs.

    Reference:
        Lee et al., 2024, arXiv 2404.08763, section 3.
    """

    sparsity: float = DEFAULT_SPARSITY
    layer_wise: bool = False
    sites = "gated activations"

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)

    def asked(self, features: int) -> float:
        """Returns the sparsity."""
        return self.sparsity

    def needs_values(self) -> bool:
        """Returns True: the threshold is found on data."""
        return True

    def on_gated_inputs(self) -> bool:
        """Returns whether blocks are calibrated one on the gated output of the other."""
        return self.layer_wise

    def fit(self, site: GateSite) -> ActivationGate:
        """Returns the gate of an activation: |a| above the threshold found on its values."""
        return ActivationGate(threshold=site.threshold())
