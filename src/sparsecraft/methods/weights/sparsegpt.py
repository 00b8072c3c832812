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
from sparsecraft.core.kinds import Layer, Layerwise, Pruned
from sparsecraft.core.mask import count
from sparsecraft.core.patterns import NM, Unstructured
from sparsecraft.core.statistics import Hessian
from sparsecraft.kernels.nm import nm_mask
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
        factor, dead = self._inverse_factor(layer[Hessian], layer.name)
        updated = weight.float().masked_fill(dead, 0)
        keep = torch.empty_like(updated, dtype=torch.bool)
        size = self._block_columns(weight.shape, layer.name)
        for begin in range(0, weight.shape[1], size):
            block = slice(begin, min(begin + size, weight.shape[1]))
            kept = self._prune_block(updated[:, block], factor[block, block], layer.density, begin)
            keep[:, block], errors = kept
            updated[:, block.stop :] -= errors @ factor[block, block.stop :]
        scores.check_finite(updated, f"{layer.name}: the updated weight")
        return Pruned.keeping(updated.to(weight.dtype), keep)

    def _prune_block(
        self, weight: Tensor, factor: Tensor, density: float, begin: int
    ) -> tuple[Tensor, Tensor]:
        """Prunes a block in place and returns its mask and the errors it hands on.

        Args:
            weight: (outputs, columns), changed in place.
            factor: (columns, columns), this block's part of the upper Cholesky factor.
            density: Of the layer.
            begin: The block's first column within the layer.
        """
        diagonal = factor.diagonal()
        group = self.pattern.of if isinstance(self.pattern, NM) else weight.shape[1]
        keep = torch.zeros_like(weight, dtype=torch.bool)
        errors = torch.zeros_like(weight)
        for column in range(weight.shape[1]):
            if column % group == 0:
                ahead = slice(column, column + group)
                loss = scores.obs(weight[:, ahead], diagonal[ahead])
                keep[:, ahead] = self._select(loss, density, begin)
            removed = weight[:, column].masked_fill(keep[:, column], 0)
            errors[:, column] = removed / diagonal[column]
            weight[:, column:].addr_(errors[:, column], factor[column, column:], alpha=-1)
        return keep, errors

    def _select(self, loss: Tensor, density: float, begin: int) -> Tensor:
        """Returns which entries of a block, or of an N:M group, stay."""
        if isinstance(self.pattern, NM):
            return nm_mask(loss, self.pattern.keep, self.pattern.of)
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

    def _inverse_factor(self, hessian: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """Returns the upper Cholesky factor of the damped inverse Hessian, and the dead inputs."""
        scores.check_finite(hessian, f"{name}: the Hessian of its input")
        dead = hessian.diagonal() == 0
        damped = hessian.clone()
        damped.diagonal()[dead] = 1
        damped.diagonal().add_(self.damping * damped.diagonal().mean())
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if failed:
            raise InvalidValue(
                f"{name}: the Hessian of its input is not positive definite in float32 at "
                f"damping={self.damping:g}. Use more calibration data, or a larger damping such "
                f"as {10 * self.damping:g}."
            )
        return upper, dead
