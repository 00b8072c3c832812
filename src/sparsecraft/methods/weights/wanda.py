"""Wanda: prunes by weights and activations, without retraining.

Large language models have a few input features of great norm, which magnitude alone misses. Sun et
al. (2023) score each weight by its magnitude times the norm of its input and compare within an
output row. One pass over a few calibration sequences is all it takes.

The official code prunes int(ratio * inputs) weights of a row; here the library's one rounding rule
(half up, of what is kept) holds, which may keep one weight less.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from sparsecraft.core import scores
from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.kinds import Layer, Layerwise, Pruned
from sparsecraft.core.patterns import Pattern, Unstructured
from sparsecraft.core.statistics import InputNorm


@method(
    "wanda",
    paper=Paper(
        "Sun et al.",
        2023,
        "2306.11695",
        title="A Simple and Effective Pruning Approach for Large Language Models",
    ),
    taxonomy=Taxonomy(
        of="weights",
        when="after training",
        start_to_end="dense to sparse",
        mask="static",
        criterion="activation-aware",
        granularity=("unstructured", "N:M", "block", "channel"),
        allocation="any",
        budget="hard per layer",
        needs=("data", "pretrained model", "dense weights"),
        cost="one forward pass over the calibration data",
        runtime="wall-clock",
    ),
)
@dataclass(frozen=True, kw_only=True)
class Wanda(Layerwise):
    """Prunes each output row by |weight| times the norm of its input, without retraining.

    Args:
        pattern: Which shapes of zeros are allowed; the paper compares within each output row.

    Reference:
        Sun et al., 2023, arXiv 2306.11695, eq. 1.
    """

    pattern: Pattern = field(default_factory=lambda: Unstructured(per="row"))
    statistics = (InputNorm,)

    def prune(self, weight: Tensor, layer: Layer) -> Pruned:
        """Returns the matrix without the entries of lowest |weight| * input norm."""
        norm = layer[InputNorm]
        scores.check_finite(weight, f"{layer.name}: the weight")
        scores.check_finite(norm, f"{layer.name}: the norm of its input")
        return Pruned.keeping(weight, self.pattern.mask(scores.wanda(weight, norm), layer.density))
