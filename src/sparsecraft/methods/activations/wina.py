"""WINA: drops the input entries that matter least, by |entry| times the norm of its column.

Chen et al. (2025) gate the input of every matrix of a block, token by token, without training. An
entry's score is its magnitude times the norm of the column it is multiplied with, which is the best
choice of all masks of its size where the columns are orthogonal; so the model is first rotated,
without changing its function, such that the key and the gate matrices are. The other matrices use
the magnitude alone, as in the official code; `norms="all"` takes the norms everywhere.

Departures: thresholds are exact quantiles, not interpolations between distinct float16 scores, and
the sizes that weigh the greedy allocation are computed from shapes, not written in tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.kinds import GateSite
from sparsecraft.methods.activations.input_gates import InputGate

Score = Literal["wina", "teal"]
Norms = Literal["orthogonal_only", "all"]


@method(
    "wina",
    paper=Paper(
        "Chen et al.",
        2025,
        "2505.19427",
        number=8,
        title="WINA: Weight Informed Neuron Activation for Accelerating Large Language Model "
        "Inference",
    ),
    taxonomy=Taxonomy(
        of="activations",
        when="at inference",
        start_to_end="dense to dense",
        mask="input-dependent",
        criterion="activation-aware",
        granularity=("unstructured",),
        allocation="any",
        budget="hard per layer",
        needs=("pretrained model", "dense weights"),
        cost="none for an exact count; one forward pass over calibration data for thresholds",
        runtime="wall-clock",
    ),
)
@dataclass(frozen=True, kw_only=True)
class WINA(InputGate):
    """Drops entries of matrix inputs by |entry| times the norm of its column, token by token.

    Args:
        transform: Rotate the model first, so that key and gate matrices have orthogonal columns.
            The function stays the same; two products of hidden x hidden per block are added. Needs
            RMSNorm; false leaves the model as it is.
        norms: "orthogonal_only" takes the column norms for the key and gate matrices (and fused
            ones that hold them), "all" for every matrix.
        score: "wina", or "teal" for magnitudes alone on the rotated model, the paper's ablation.

    Reference:
        Chen et al., 2025, arXiv 2505.19427, section 3.
    """

    prefill: float = 0.99
    step: float = 0.025
    transform: bool = True
    norms: Norms = "orthogonal_only"
    score: Score = "wina"

    def prepare(self, model: Any) -> Any:
        """Returns the rotation of the model, made in place, or None without `transform`."""
        if not self.transform:
            return None
        from sparsecraft.model.rotation import rotate

        return rotate(model)

    def factors(self, site: GateSite) -> Tensor | None:
        """Returns the column norms of the site's matrix where they are asked for."""
        takes = self.norms == "all" or site.orthogonal
        if self.score == "teal" or not takes or site.weight is None:
            return None
        return site.weight.float().norm(dim=0)

    def _choices(self) -> dict[str, tuple[Any, ...]]:
        return {**super()._choices(), "norms": get_args(Norms), "score": get_args(Score)}
