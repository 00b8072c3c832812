"""SparseGPT: removes weights and repairs the rest of the row, column by column.

Frantar and Alistarh (2023) see the pruning of a layer as a least-squares problem in its inputs.
Each removed weight is paid back by the exact (optimal brain surgeon) update of the weights to its
right, with one Cholesky factor of the inverse Hessian for all rows. Which weights go is decided
block of columns by block of columns, with the weights as updated so far.

Departures: the official threshold removes one weight more in each block than its ratio asks; here
the counts of the blocks add up to the layer's exact count. Where M does not divide the block size,
the block shrinks to a multiple of M, so that no group is cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecraft.core import scores
from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.inverse_factor import inverse_factor
from sparsecraft.core.kinds import Layer, Layerwise, Pruned
from sparsecraft.core.mask import count
from sparsecraft.core.patterns import NM, Unstructured
from sparsecraft.core.statistics import Hessian
from sparsecraft.kernels.repair import remove_and_repair
from sparsecraft.kernels.selection import keep_largest, keep_largest_per_row


@method(
    "sparsegpt",
    paper=Paper(
        "Frantar, Alistarh",
        2023,
        "2301.00774",
        title="SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
    ),
    taxonomy=Taxonomy(
        of="weights",
        when="after training",
        start_to_end="dense to sparse",
        mask="static",
        criterion="second order",
        granularity=("unstructured", "N:M"),
        allocation="any",
        budget="hard per layer",
        needs=("data", "pretrained model", "dense weights"),
        cost="one forward pass over the calibration data, one Cholesky factor for each input",
        runtime="wall-clock",
    ),
)
@dataclass(frozen=True, kw_only=True)
class SparseGPT(Layerwise):
    """Prunes by the optimal-brain-surgeon error and updates the weights that stay.

    Args:
        block_size: Columns between two decisions; the errors of a block reach the columns to its
            right at once.
        damping: Added to the Hessian's diagonal, as a fraction of its mean.

    Reference:
        Frantar, Alistarh, 2023, arXiv 2301.00774, algorithm 1.
    """

    block_size: int = 128
    damping: float = 0.01
    statistics = (Hessian,)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.pattern, Unstructured | NM):
            raise InvalidValue(
                f"sparsegpt decides weight by weight and has no form for {self.pattern}. "
                'Use "unstructured", "row" or an N:M pattern such as "2:4".'
            )
        if self.block_size < 1:
            raise InvalidValue(f"block_size={self.block_size}: it must be at least 1 column")
        if not self.damping > 0:
            raise InvalidValue(f"damping={self.damping}: it must be above 0, for example 0.01")

    def prune(self, weight: Tensor, layer: Layer) -> Pruned:
        """Returns the matrix pruned, the kept entries updated to make up for the removed ones."""
        scores.check_finite(weight, f"{layer.name}: the weight")
        factor = inverse_factor(layer[Hessian], self.damping, layer.name)
        upper = factor.upper
        updated = weight.float().masked_fill(factor.dead, 0)
        keep = torch.empty_like(updated, dtype=torch.bool)
        size = self._block_columns(weight.shape, layer.name)
        for begin in range(0, weight.shape[1], size):
            block = slice(begin, min(begin + size, weight.shape[1]))
            columns, kept = updated[:, block], keep[:, block]
            if not isinstance(self.pattern, NM):
                loss = scores.obs(columns, upper.diagonal()[block])
                kept.copy_(self._select(loss, layer.density, begin))
            errors = remove_and_repair(columns, upper[block, block], kept, self._groups)
            updated[:, block.stop :].addmm_(errors, upper[block, block.stop :], alpha=-1)
        scores.check_finite(updated, f"{layer.name}: the updated weight")
        return Pruned.keeping(updated.to(weight.dtype), keep)

    @property
    def _groups(self) -> tuple[int, int] | None:
        return (self.pattern.keep, self.pattern.of) if isinstance(self.pattern, NM) else None

    def _select(self, loss: Tensor, density: float, begin: int) -> Tensor:
        """Returns which entries of a block of columns stay."""
        end = begin + loss.shape[1]
        # What the columns so far keep together is exact, and so is what all blocks keep together.
        if self.pattern == Unstructured(per="row"):
            return keep_largest_per_row(loss, count(end, density) - count(begin, density))
        rows = loss.shape[0]
        return keep_largest([loss], count(rows * end, density) - count(rows * begin, density))[0]

    def _block_columns(self, shape: torch.Size, name: str) -> int:
        if not isinstance(self.pattern, NM):
            return self.block_size
        self.pattern.check((shape[0], shape[1]), name)
        return max(self.pattern.of, self.block_size - self.block_size % self.pattern.of)
