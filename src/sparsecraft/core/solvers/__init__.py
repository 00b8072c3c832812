"""Iterative solvers: sparse codes of rows in a dictionary, and least squares.

Everywhere x is (rows, d), a dictionary is (components, d) with an atom in each row, and codes are
(rows, components), so that x is about codes @ dictionary. Rows are solved side by side.
"""

from sparsecraft.core.solvers.conjugate_gradient import conjugate_gradient, debias
from sparsecraft.core.solvers.duality import lasso_gap
from sparsecraft.core.solvers.lipschitz import lipschitz
from sparsecraft.core.solvers.proximal import (
    Decay,
    Rate,
    Solution,
    Stopping,
    fista,
    iht,
    ista,
    objective,
)

__all__ = [
    "Decay",
    "Rate",
    "Solution",
    "Stopping",
    "conjugate_gradient",
    "debias",
    "fista",
    "iht",
    "ista",
    "lasso_gap",
    "lipschitz",
    "objective",
]
