"""Iterative solvers: sparse codes of rows in a dictionary, and least squares.

Everywhere x is (rows, d), a dictionary is (components, d) with an atom in each row, and codes are
(rows, components), so that x is about codes @ dictionary. Rows are solved side by side.
"""

from sparsecraft.core.solvers.competition import lca
from sparsecraft.core.solvers.conjugate_gradient import conjugate_gradient, debias
from sparsecraft.core.solvers.duality import lasso_gap
from sparsecraft.core.solvers.lipschitz import lipschitz
from sparsecraft.core.solvers.problem import Solution
from sparsecraft.core.solvers.proximal import fista, iht, ista, objective
from sparsecraft.core.solvers.pursuit import omp
from sparsecraft.core.solvers.stopping import Decay, Stopping

__all__ = [
    "Decay",
    "Solution",
    "Stopping",
    "conjugate_gradient",
    "debias",
    "fista",
    "iht",
    "ista",
    "lasso_gap",
    "lca",
    "lipschitz",
    "objective",
    "omp",
]
