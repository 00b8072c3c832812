"""Which zeros are preferred: penalties R, each with its value and its proximal operator.

prox(x, step) = argmin_z 1/2 ||z - x||^2 + step * R(z). A penalty is the same object for weights and
for codes.
"""

from sparsecraft.core.penalties.base import Penalty, check_count, check_step, check_strength
from sparsecraft.core.penalties.entries import L0, L1, soft_threshold
from sparsecraft.core.penalties.groups import (
    GroupL2,
    GroupPenalty,
    GroupTopK,
    SparseGroupL2,
    block_threshold,
    check_norms,
    norms_and_sizes,
    scale_groups,
)
from sparsecraft.core.penalties.names import by_name, describe_penalty, without_half
from sparsecraft.core.penalties.nonconvex import CEL0, MCP, SCAD, Log, Lq, firm_threshold
from sparsecraft.core.penalties.nonnegative import NonNegativeL0, NonNegativeL1
from sparsecraft.core.penalties.selections import AbsTopK, Scope, Selection, TopK

__all__ = [
    "CEL0",
    "L0",
    "L1",
    "MCP",
    "SCAD",
    "AbsTopK",
    "GroupL2",
    "GroupPenalty",
    "GroupTopK",
    "Log",
    "Lq",
    "NonNegativeL0",
    "NonNegativeL1",
    "Penalty",
    "Scope",
    "Selection",
    "SparseGroupL2",
    "TopK",
    "block_threshold",
    "by_name",
    "check_count",
    "check_norms",
    "check_step",
    "check_strength",
    "describe_penalty",
    "firm_threshold",
    "norms_and_sizes",
    "scale_groups",
    "soft_threshold",
    "without_half",
]
