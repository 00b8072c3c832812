"""Mutual Choice: a batch keeps its k largest positive pre-activations for each row on average.

Ayonrinde (2024) sees a code as a budget of edges between tokens and features. TopK gives every
token the same number; Mutual Choice bounds only the total, M = k N, so that hard tokens use more
features. It is BatchTopK (Bussmann et al., 2024), found at the same time. A zero is never selected,
so early in training the budget may not be used up. For rows that come alone one threshold stands
in: the running mean of the smallest entry kept, or exact by `freeze_thresholds`.

Over ranks each keeps k times its own rows (an approximation of the choice over the global batch,
equal to it in expectation as rows are shuffled), and the threshold is the mean of the ranks'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor

from sparsecraft.core import penalties
from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.code import Code
from sparsecraft.core.code_thresholds import check_momentum, move_towards, smallest_kept
from sparsecraft.core.kinds import Own, Selecting, Side
from sparsecraft.core.kinds.activation import Reduction
from sparsecraft.methods.codes.topk import check_k

PAPER = Paper(
    "Ayonrinde",
    2024,
    "2411.02124",
    number=21,
    title="Adaptive Sparse Allocation with Mutual Choice and Feature Choice Sparse Autoencoders",
)
TAXONOMY = Taxonomy(
    of="codes",
    when="during training",
    start_to_end="dense to sparse",
    mask="input-dependent",
    criterion="magnitude",
    granularity=("unstructured",),
    allocation="global",
    budget="hard global",
    needs=("data", "pretrained model"),
    cost="one training of the dictionary",
    runtime="FLOPs",
)


@method("mutual_choice", paper=PAPER, taxonomy=TAXONOMY)
@dataclass(frozen=True, kw_only=True)
class MutualChoice(Selecting):
    """Keeps the k * rows largest positive pre-activations of a training batch.

    Args:
        k: Entries of a code that are other than zero, on average.
        threshold_momentum: Of the running threshold for rows that come alone, in [0, 1).

    Example:
        >>> MutualChoice(k=1).penalty().prox(torch.tensor([[3.0, 2.0], [1.0, 0.5]]))
        tensor([[3., 2.],
                [0., 0.]])
    """

    k: int = 32
    threshold_momentum: float = 0.99
    reductions: ClassVar[Mapping[str, Reduction]] = {"threshold": "sum", "batches": "sum"}

    def __post_init__(self) -> None:
        penalties.check_count(self.k)
        check_momentum("threshold_momentum", self.threshold_momentum)

    def check(self, d_in: int, d_sae: int) -> None:
        """Raises InvalidValue if k exceeds the dictionary."""
        check_k(self.k, d_sae)

    def penalty(self) -> penalties.Selection:
        """Returns k entries for each row on average, none negative."""
        return penalties.TopK(k=self.k, scope="batch")

    def initial(self, d_sae: int, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns no parameters, and the threshold, unset."""
        return {}, {"threshold": torch.full((1,), torch.nan)}

    def observe(self, u: Tensor, z: Tensor | Code, own: Own, side: Side) -> dict[str, Tensor]:
        """Returns what the running threshold is made of."""
        return smallest_kept(u, cast(Code, z))

    def update(self, own: Own, statistics: Mapping[str, Tensor], progress: float) -> None:
        """Moves the threshold towards the mean over ranks of the smallest entry kept."""
        if float(statistics["batches"]) > 0:
            move_towards(
                own.state["threshold"],
                statistics["threshold"] / statistics["batches"],
                self.threshold_momentum,
            )
