"""Feature Choice: every latent keeps its own number of a batch's pre-activations.

Ayonrinde (2024) gives each feature j a budget of m_j edges in a batch of N tokens, which sum to
k N, so that no feature can die of neglect. Budgets are uniform, or follow Zipf's law by each
feature's rank (`core.zipf`). From untrained features a choice by feature is poor: until the share
`after` of the training the selection is mutual (`MutualChoice`), and the densities seen there give
the ranks.

The paper has no code and leaves constants open; ours: the law is fitted when the features begin to
choose, to those that fired while their densities were averaged; ranks are taken anew every
`rerank_every` steps and held in between; budgets are whole numbers from 1 to N by the largest
remainder. A feature with fewer positive pre-activations than its budget does not fill it: a zero is
never selected. For rows that come alone each latent has a threshold, the running mean of its m_j-th
largest entry. Over ranks each chooses among its own rows, with budgets for these; densities are
exact (counts are summed), thresholds are the mean of the ranks'.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor

from sparsecraft.core import penalties
from sparsecraft.core.catalog import Taxonomy, method
from sparsecraft.core.code import Code
from sparsecraft.core.code_thresholds import (
    check_momentum,
    column_thresholds,
    move_towards,
    smallest_kept,
    smallest_kept_by_column,
    whole_threshold,
    window,
)
from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.kinds import Own, Selecting, Side
from sparsecraft.core.kinds.activation import Reduction
from sparsecraft.core.zipf import ZipfBudget, largest_remainder, ranks_of
from sparsecraft.kernels.codes import select_columns
from sparsecraft.methods.codes.mutual_choice import PAPER
from sparsecraft.methods.codes.topk import check_k

BUDGETS = ("uniform", "zipf")


@method(
    "feature_choice",
    paper=PAPER,
    taxonomy=Taxonomy(
        of="codes",
        when="during training",
        start_to_end="dense to sparse",
        mask="input-dependent",
        criterion="magnitude",
        granularity=("unstructured",),
        allocation="any",
        budget="hard global",
        needs=("data", "pretrained model"),
        cost="one training of the dictionary",
        runtime="FLOPs",
    ),
)
@dataclass(frozen=True, kw_only=True)
class FeatureChoice(Selecting):
    """Keeps in a training batch m_j positive pre-activations of latent j, k for each row in all.

    Args:
        k: Entries of a code that are other than zero, on average.
        budget: How the k times rows entries of a batch are divided: "uniform", "zipf" by rank, or
            the share of rows in which each latent shall fire, numbers that sum to k.
        after: Share of the training after which latents choose; until then the choice is mutual.
            At 1 it stays mutual.
        rerank_every: Steps between two rankings of the latents, once they choose (zipf).
        threshold_momentum: Of the running thresholds for rows that come alone, in [0, 1).
        density_momentum: Of the running share of rows in which each latent fires, in [0, 1).
    """

    k: int = 32
    budget: Literal["uniform", "zipf"] | tuple[float, ...] = "uniform"
    after: float = 0.8
    rerank_every: int = 100
    threshold_momentum: float = 0.99
    density_momentum: float = 0.99
    reductions: ClassVar[Mapping[str, Reduction]] = {
        "threshold": "sum",
        "batches": "sum",
        "fired": "sum",
        "rows": "sum",
    }

    def __post_init__(self) -> None:
        penalties.check_count(self.k)
        check_momentum("threshold_momentum", self.threshold_momentum)
        check_momentum("density_momentum", self.density_momentum)
        if not (isinstance(self.after, int | float) and 0 <= self.after <= 1):
            raise InvalidValue(f"after={self.after!r} is not allowed: give a share in [0, 1]")
        if not isinstance(self.rerank_every, int) or self.rerank_every < 1:
            raise InvalidValue(f"rerank_every={self.rerank_every!r} is not allowed: give 1 or more")
        if not isinstance(self.budget, str):
            object.__setattr__(self, "budget", self._given(self.budget))
        elif self.budget not in BUDGETS:
            raise UnknownName("budget", self.budget, BUDGETS)
        if self.budget == "zipf" and self.after == 0:
            raise InvalidValue(
                'budget="zipf" ranks latents by how often they fire under the mutual choice, and '
                "after=0 leaves no time for it: give after > 0, such as 0.8"
            )

    def check(self, d_in: int, d_sae: int) -> None:
        """Raises InvalidValue if k or the given budget does not suit the dictionary."""
        check_k(self.k, d_sae)
        if not isinstance(self.budget, str) and len(self.budget) != d_sae:
            raise InvalidValue(
                f"budget has {len(self.budget)} numbers, and the dictionary d_sae={d_sae} latents: "
                "give one for each"
            )

    def penalty(self) -> penalties.Selection:
        """Returns the mutual choice of the first phase; its sign rule is that of both."""
        return penalties.TopK(k=self.k, scope="batch")

    def initial(self, d_sae: int, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns no parameters; thresholds, densities, silence, ranks, law, and steps of choice.

        "silent" counts the steps since each latent fired.
        "chosen" counts the steps in which latents chose, and is -1 while the choice is mutual.
        """
        return {}, {
            "threshold": torch.full((d_sae,), torch.nan),
            "density": torch.full((d_sae,), torch.nan),
            "silent": torch.zeros(d_sae, dtype=torch.int64),
            "rank": torch.arange(d_sae),
            "zipf": torch.zeros(2),
            "chosen": torch.tensor(0 if self.after == 0 else -1),
        }

    def budgets(self, own: Own, rows: int) -> Tensor:
        """Returns int64 (d_sae,), the entries m_j of each latent in so many rows; they sum to k N.

        Raises:
            InvalidValue: If there are fewer entries than latents.
        """
        self._check_rows(rows, len(own.bias))
        return largest_remainder(self._weights(own), self.k * rows, lowest=1, highest=rows)

    def select(self, u: Tensor, own: Own, side: Side, *, training: bool) -> Code:
        """Returns the code of pre-activations (rows, d_sae); see `Selecting.select`.

        Raises:
            InvalidValue: In training, if the batch has fewer entries to give than latents.
        """
        if training:
            self._check_rows(len(u), u.shape[1])
        if not training or int(own.state["chosen"]) < 0:
            return super().select(u, own, side, training=training)
        starts, columns = select_columns(u, self.budgets(own, len(u)).to(u.device))
        code = Code(starts, columns, u.new_empty(0), u.shape[1])
        return code.with_values(u[code.rows(), columns])

    def observe(self, u: Tensor, z: Tensor | Code, own: Own, side: Side) -> dict[str, Tensor]:
        """Returns how often each latent fired, and what its threshold is made of."""
        code = cast(Code, z)
        # Counted as int64: float32 sums over ranks would lose counts beyond 2^24.
        counted = {"fired": code.fired(), "rows": torch.tensor([len(code)], device=u.device)}
        if int(own.state["chosen"]) < 0:
            found = smallest_kept(u, code)
            return {**counted, **found, "threshold": found["threshold"].expand(u.shape[1]).clone()}
        least = smallest_kept_by_column(u, code, self.budgets(own, len(u)))
        return {**counted, "threshold": least, "batches": torch.ones_like(least[:1])}

    def update(self, own: Own, statistics: Mapping[str, Tensor], progress: float) -> None:
        """Moves densities and thresholds, ranks the latents where due, and begins their choice."""
        state = own.state
        seen = statistics["fired"].to(state["density"]) / statistics["rows"]
        move_towards(state["density"], seen, self.density_momentum)
        state["silent"].add_(1).masked_fill_(seen > 0, 0)
        if float(statistics["batches"]) > 0:
            least = statistics["threshold"] / statistics["batches"]
            first = int(state["chosen"]) == 0
            move_towards(state["threshold"], least, self.threshold_momentum, first=first)
        begins = int(state["chosen"]) < 0 and self.after <= progress < 1
        if begins or int(state["chosen"]) >= 0:
            state["chosen"] += 1
            if self.budget == "zipf" and int(state["chosen"]) % self.rerank_every == 0:
                self._rank(state, fit=begins)

    def calibrate(self, batches: Iterable[Tensor], rows: int, own: Own) -> Tensor | None:
        """Returns (d_sae,) exact thresholds once latents choose, (1,) before; see `Selecting`."""
        if int(own.state["chosen"]) < 0:
            return whole_threshold(batches, self.k * rows)
        return column_thresholds(batches, self.budgets(own, rows))

    def _given(self, budget: Iterable[float]) -> tuple[float, ...]:
        shares = tuple(float(share) for share in budget)
        if not all(0 < share <= 1 for share in shares):
            raise InvalidValue(
                "a budget is the share of rows in which each latent shall fire: give numbers above "
                f"0 and up to 1, not {next(s for s in shares if not 0 < s <= 1):g}"
            )
        if abs(math.fsum(shares) - self.k) > 1e-6 * self.k:
            raise InvalidValue(
                f"the budget sums to {math.fsum(shares):g}; it must sum to k={self.k}"
            )
        return shares

    def _check_rows(self, rows: int, d_sae: int) -> None:
        if rows < 2 or self.k * rows < d_sae:
            raise InvalidValue(
                f"a batch of {rows} rows has {self.k * rows} entries for {d_sae} latents, and "
                "Feature Choice gives each at least one of a batch of several rows: train with "
                f"batches of at least {max(2, math.ceil(d_sae / self.k))} rows in each process"
            )

    def _weights(self, own: Own) -> Tensor:
        """Returns float64 (d_sae,), what the budget is in proportion to."""
        d_sae = len(own.bias)
        if not isinstance(self.budget, str):
            return torch.tensor(self.budget, dtype=torch.float64)
        if self.budget == "uniform" or int(own.state["chosen"]) < 0:
            return torch.ones(d_sae, dtype=torch.float64)
        exponent, offset = own.state["zipf"].tolist()
        return ZipfBudget(exponent=exponent, offset=offset).weights(d_sae)[own.state["rank"].cpu()]

    def _rank(self, state: Mapping[str, Tensor], *, fit: bool) -> None:
        """Ranks the latents by the densities of the moment; at first fits the law to them too."""
        # The running mean of what fell silent decays and says nothing (`FiringCounter`).
        dead = state["silent"] >= window(self.density_momentum)
        density = state["density"].masked_fill(dead, 0.0)
        if fit:
            law = ZipfBudget.fit(density)
            state["zipf"].copy_(torch.tensor([law.exponent, law.offset]))
        state["rank"].copy_(ranks_of(density))
