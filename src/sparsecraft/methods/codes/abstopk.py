"""AbsTopK: each row keeps its k pre-activations of largest magnitude, with their signs.

Zhu et al. (2025) derive encoders as one proximal gradient step of sparse coding: ReLU, JumpReLU and
TopK are the prox of penalties that all contain z >= 0. Without that constraint the prox of "at most
k entries" is hard thresholding, and one latent can hold both poles of a concept where TopK spends
two. The paper selects in each row, which is the default here; the authors' code selects over the
whole batch (`scope="batch"`) and has no rule for a row that comes alone. Ours keeps what exceeds a
two-sided threshold, the running mean of the smallest magnitude that training batches kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, cast, get_args

import torch
from torch import Tensor

from sparsecraft.core import penalties
from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.code import Code
from sparsecraft.core.code_thresholds import check_momentum, move_towards, smallest_kept
from sparsecraft.core.errors import UnknownName
from sparsecraft.core.kinds import Own, Selecting, Side
from sparsecraft.core.kinds.activation import Reduction
from sparsecraft.methods.codes.mutual_choice import MutualChoice
from sparsecraft.methods.codes.topk import TopK, check_k

SelectionScope = Literal["token", "batch"]
SCOPES: tuple[SelectionScope, ...] = get_args(SelectionScope)


@method(
    "abstopk",
    paper=Paper(
        "Zhu et al.",
        2025,
        "2510.00404",
        number=1,
        title="AbsTopK: Rethinking Sparse Autoencoders For Bidirectional Features",
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
class AbsTopK(Selecting):
    """Keeps the k pre-activations of largest magnitude of each row, with their signs.

    Args:
        k: Entries of a code that may be other than zero; on average, if over the batch.
        scope: Whether each row keeps k ("token"), or a training batch k times its rows ("batch").
        threshold_momentum: Of the running threshold for rows that come alone, over the batch.

    Example:
        >>> from sparsecraft.model.sae import SparseAutoencoder
        >>> sae = SparseAutoencoder(d_in=4, d_sae=16, activation=AbsTopK(k=3))
        >>> (sae.encode(torch.randn(5, 4)) != 0).sum(1).tolist()
        [3, 3, 3, 3, 3]
    """

    k: int = 32
    scope: SelectionScope = "token"
    threshold_momentum: float = 0.99
    signed: ClassVar[bool] = True
    reductions: ClassVar[Mapping[str, Reduction]] = {"threshold": "sum", "batches": "sum"}

    def __post_init__(self) -> None:
        penalties.check_count(self.k)
        check_momentum("threshold_momentum", self.threshold_momentum)
        if self.scope not in SCOPES:
            raise UnknownName("scope", str(self.scope), SCOPES)

    def check(self, d_in: int, d_sae: int) -> None:
        """Raises InvalidValue if k exceeds the dictionary."""
        check_k(self.k, d_sae)

    def penalty(self) -> penalties.Selection:
        """Returns at most k entries of each row, or k for each row on average, of either sign."""
        return penalties.AbsTopK(k=self.k, scope=self.scope)

    def rectified(self) -> Selecting:
        """Returns the same selection among positive parts: TopK, or MutualChoice over the batch."""
        if self.scope == "token":
            return TopK(k=self.k)
        return MutualChoice(k=self.k, threshold_momentum=self.threshold_momentum)

    def initial(self, d_sae: int, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns no parameters, and over the batch the threshold, unset."""
        return {}, {} if self.scope == "token" else {"threshold": torch.full((1,), torch.nan)}

    def observe(self, u: Tensor, z: Tensor | Code, own: Own, side: Side) -> dict[str, Tensor]:
        """Returns what the running threshold is made of, over the batch."""
        if self.scope == "token":
            return {}
        return smallest_kept(u, cast(Code, z), absolute=True)

    def reads_pre_activations(self) -> bool:
        """Returns whether the threshold is made of them: over the batch."""
        return self.scope == "batch"

    def update(self, own: Own, statistics: Mapping[str, Tensor], progress: float) -> None:
        """Moves the threshold towards the mean over ranks of the smallest magnitude kept."""
        if statistics and float(statistics["batches"]) > 0:
            move_towards(
                own.state["threshold"],
                statistics["threshold"] / statistics["batches"],
                self.threshold_momentum,
            )
