"""Sparse iso-FLOP transformations: larger, sparse layers at the cost of the dense ones.

Sparse-IFT (Thangarasa et al., 2023) does not use sparsity to save operations but to buy accuracy:
each dense layer gives way to a larger sparse one of equal FLOPs, wider (Sparse-Wide), of several
branches (Sparse-Parallel), with a wide inner layer (Sparse-Factorized) or with a low-rank term
(Sparse-Doped). The sparsity alone fixes the size, the masks are learned while it trains, best by
RigL, and the dense model's hyperparameters stay.

Departures from the official code: the sparsity is solved anew for every family, not for
Sparse-Wide alone, since rounding a small inner width costs several per cent; U and V of
Sparse-Doped stay dense, as in the paper, where the code's rule would mask them; factorised linear
layers get the batch normalisation of convolutions, over all axes but the last; 1 / (1 - s) is
rounded only where it is nearly whole; stem and head, where they grow, keep the scale of weights
that their author gave them.

Reference:
    Thangarasa et al., 2023, arXiv 2303.11525.
"""

from sparsecraft.methods.weights.sparse_ift.decay import joint_decay_groups, joint_weight_decay
from sparsecraft.methods.weights.sparse_ift.doped import DopedLayer
from sparsecraft.methods.weights.sparse_ift.factorized import FactorizedLayer
from sparsecraft.methods.weights.sparse_ift.folding import FoldReport, fold
from sparsecraft.methods.weights.sparse_ift.parallel import ParallelLayer
from sparsecraft.methods.weights.sparse_ift.recipe import SparseIFT, SparseIFTOutcome
from sparsecraft.methods.weights.sparse_ift.report import IsoFlopReport
from sparsecraft.methods.weights.sparse_ift.transform import sparse_ift

__all__ = [
    "DopedLayer",
    "FactorizedLayer",
    "FoldReport",
    "IsoFlopReport",
    "ParallelLayer",
    "SparseIFT",
    "SparseIFTOutcome",
    "fold",
    "joint_decay_groups",
    "joint_weight_decay",
    "sparse_ift",
]
