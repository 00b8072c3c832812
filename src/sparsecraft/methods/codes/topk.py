"""TopK: each row keeps its k largest positive pre-activations.

The sparsity is set by k itself, so no penalty shrinks the values; dead latents are revived by an
auxiliary loss of the host. The negative half is cut off before the selection, so a row with fewer
than k positive pre-activations has a shorter code.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsecraft.core import penalties
from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.kinds import Selecting


@method(
    "topk_sae",
    paper=Paper(
        "Gao et al.", 2024, "2406.04093", title="Scaling and evaluating sparse autoencoders"
    ),
    taxonomy=Taxonomy(
        of="codes",
        when="during training",
        start_to_end="dense to sparse",
        mask="input-dependent",
        criterion="magnitude",
        granularity=("unstructured",),
        allocation="uniform",
        budget="hard per layer",
        needs=("data", "pretrained model"),
        cost="one training of the dictionary",
        runtime="FLOPs",
    ),
)
@dataclass(frozen=True, kw_only=True)
class TopK(Selecting):
    """Keeps the k largest positive pre-activations of each row.

    Args:
        k: Entries of a code that may be other than zero.
    """

    k: int = 32

    def __post_init__(self) -> None:
        penalties.check_count(self.k)

    def check(self, d_in: int, d_sae: int) -> None:
        """Raises InvalidValue if k exceeds the dictionary."""
        check_k(self.k, d_sae)

    def penalty(self) -> penalties.Selection:
        """Returns at most k entries of each row, none negative."""
        return penalties.TopK(k=self.k)


def check_k(k: int, d_sae: int) -> None:
    """Raises InvalidValue if k exceeds the dictionary."""
    if k > d_sae:
        raise InvalidValue(
            f"k={k} exceeds d_sae={d_sae}, the latents of the dictionary: give a whole number "
            f"from 1 to {d_sae}, or a larger dictionary"
        )
