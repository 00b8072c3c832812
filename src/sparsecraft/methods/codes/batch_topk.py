"""BatchTopK: a batch keeps its k largest positive pre-activations for each row on average.

Bussmann et al. (2024) and Ayonrinde (2024) found the same selection at the same time; it is written
once, as `MutualChoice`, and stands here under its other name.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsecraft.core.catalog import Paper, method
from sparsecraft.methods.codes.mutual_choice import TAXONOMY, MutualChoice


@method(
    "batch_topk",
    paper=Paper("Bussmann et al.", 2024, "2412.06410", title="BatchTopK Sparse Autoencoders"),
    taxonomy=TAXONOMY,
)
@dataclass(frozen=True, kw_only=True)
class BatchTopK(MutualChoice):
    """Keeps the k * rows largest positive pre-activations of a training batch.

    Args:
        k: Entries of a code that are other than zero, on average.
        threshold_momentum: Of the running threshold for rows that come alone, in [0, 1).
    """
