"""TEAL: drops the input entries of smallest magnitude, token by token, without training.

Liu et al. (2024) saw that the inputs of the matrices of a language model are zero-mean and
unimodal, so that most entries are small, and drop those under a threshold that is fixed for each
matrix on calibration data. A greedy search shares the sparsity between the matrices of a block by
the error of the block's output. The first half of a prompt is spared.

Departures: thresholds are exact quantiles of magnitudes, where the paper interpolates a histogram
of signed values and assumes symmetry; each matrix has a threshold of its own, also where several
read one input; the greedy sizes come from shapes (the paper's table has a slip for Llama 2's key
and value).
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.methods.activations.input_gates import InputGate, Rule


@method(
    "teal",
    paper=Paper(
        "Liu et al.",
        2024,
        "2408.14690",
        title="Training-Free Activation Sparsity in Large Language Models",
    ),
    taxonomy=Taxonomy(
        of="activations",
        when="at inference",
        start_to_end="dense to dense",
        mask="input-dependent",
        criterion="magnitude",
        granularity=("unstructured",),
        allocation="any",
        budget="soft",
        needs=("data", "pretrained model"),
        cost="one forward pass over the calibration data; the greedy search runs each block often",
        runtime="wall-clock",
    ),
)
@dataclass(frozen=True, kw_only=True)
class TEAL(InputGate):
    """Drops the entries of smallest magnitude of matrix inputs, under thresholds from data.

    Reference:
        Liu et al., 2024, arXiv 2408.14690, section 4, algorithm 1.
    """

    rule: Rule = "threshold"
    prefill: float = 0.5
