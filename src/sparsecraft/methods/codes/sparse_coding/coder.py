"""Codes of rows in a dictionary that is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.penalties import CEL0, L1, Penalty
from sparsecraft.core.solvers import Stopping, debias, fista, ista, lasso_gap
from sparsecraft.core.solvers.proximal import Step, checked_step
from sparsecraft.core.solvers.stopping import Measure
from sparsecraft.methods.codes.sparse_coding.batches import Solver
from sparsecraft.methods.codes.sparse_coding.estimator import (
    Estimator,
    chosen_penalty,
    chosen_stopping,
)
from sparsecraft.methods.codes.sparse_coding.rows import as_rows

SolverName = Literal["ista", "fista"]
SOLVERS: dict[str, Solver] = {"ista": ista, "fista": fista}


@dataclass(frozen=True)
class CodingReport:
    """How the coding of rows went.

    Args:
        rows: How many there were.
        unsettled: Rows that ran out of steps; their codes are the last ones.
        unfitted: Rows whose debiasing ran out of steps.
        steps: The most that a row took.
        active: Entries of a row other than zero, on average.
        empty: Rows whose code is zero throughout.
        gap: For an L1 penalty, the largest amount by which a row's objective can exceed its
            minimum, before any debiasing; else None.
    """

    rows: int
    unsettled: int
    unfitted: int
    steps: int
    active: float
    empty: int
    gap: float | None = None

    def __str__(self) -> str:
        told = [f"{self.rows} rows, {self.active:.1f} entries a row, {self.steps} steps at most"]
        if self.unsettled:
            told.append(
                f"{self.unsettled} did not settle: raise max_steps or tolerance, or give a larger "
                "step"
            )
        if self.unfitted:
            told.append(f"{self.unfitted} debiased only in part")
        if self.empty:
            told.append(f"{self.empty} have no entry: the strength is too great for them")
        if self.gap is not None:
            told.append(f"at most {self.gap:.2g} above the best objective")
        return "; ".join(told)


class SparseCoder(Estimator):
    """Writes rows as sparse sums of given atoms; a scikit-learn transformer.

    NumPy arrays give NumPy arrays, tensors give tensors. `report_` says how the last coding went.

    Args:
        dictionary: (components, d), an atom in each row, of any norm above 0.
        penalty: A penalty of `sparsecraft.core.penalties`, or the name of one, such as "l1", "l0",
            "cel0" or "half".
        strength: Of a penalty given by name, in the convention with 1/2; by default 0.27.
        solver: "ista", or "fista" with momentum.
        step: Length of the gradient's step, or "auto", 1 / ||dictionary||^2.
        tolerance: Relative change under which a row has settled.
        max_steps: After which a row is given up, which `report_` counts.
        measure: "row", or "batch" for the paper's criterion over all rows at once.
        debias: Whether entries are fitted again, by least squares on the support found.
        batch_size: Rows that are coded at once.

    Example:
        >>> import numpy as np
        >>> coder = SparseCoder(np.eye(2), penalty="l1", strength=1.0)
        >>> coder.transform(np.array([[3.0, 0.5]]))
        array([[2., 0.]])
        >>> print(coder.report_)
        1 rows, 1.0 entries a row, 2 steps at most; at most 0 above the best objective
    """

    def __init__(
        self,
        dictionary: Any,
        *,
        penalty: str | Penalty = "cel0",
        strength: float | None = None,
        solver: SolverName = "ista",
        step: Step = "auto",
        tolerance: float = 1e-4,
        max_steps: int = 2000,
        measure: Measure = "row",
        debias: bool = False,
        batch_size: int = 4096,
    ) -> None:
        self.dictionary = dictionary
        self.penalty = penalty
        self.strength = strength
        self.solver = solver
        self.step = step
        self.tolerance = tolerance
        self.max_steps = max_steps
        self.measure = measure
        self.debias = debias
        self.batch_size = batch_size

    def fit(self, X: Any = None, y: Any = None) -> Self:
        """Returns the coder; there is nothing to learn."""
        return self

    def transform(self, X: Any) -> Any:
        """Returns the codes (rows, components) of X (rows, d).

        Raises:
            InvalidValue: If shapes, types or settings are not allowed.
            NonFinite: For NaN or infinite entries.
        """
        atoms = as_rows(self.dictionary, what="the dictionary")[0]
        rows, back = as_rows(X, atoms.shape[1], reader=self._reader)
        atoms = atoms.to(rows)
        codes, self.report_ = coded(
            rows,
            atoms,
            chosen_penalty(self.penalty, self.strength),
            solver=self.solver,
            step=self.step,
            stopping=chosen_stopping(self.tolerance, self.max_steps, self.measure),
            fit_again=self.debias,
            batch_size=self.batch_size,
        )
        return back(codes)

    def inverse_transform(self, codes: Any) -> Any:
        """Returns (rows, d), the sums of atoms that the codes stand for."""
        atoms = as_rows(self.dictionary, what="the dictionary")[0]
        rows, back = as_rows(codes, len(atoms), "the code")
        return back(rows @ atoms.to(rows))

    _reader = "SparseCoder"

    @property
    def n_features_in_(self) -> int:
        """Width of the rows."""
        return as_rows(self.dictionary, what="the dictionary")[0].shape[1]


def coded(
    rows: Tensor,
    atoms: Tensor,
    penalty: Penalty,
    *,
    solver: str,
    step: Step,
    stopping: Stopping,
    fit_again: bool,
    batch_size: int,
) -> tuple[Tensor, CodingReport]:
    """Returns the codes of rows, batch by batch, and how it went; arguments as of `SparseCoder`."""
    solve = chosen_solver(solver)
    if not isinstance(batch_size, int) or batch_size < 1:
        raise InvalidValue(f"batch_size={batch_size!r} is not allowed: give at least 1")
    if isinstance(penalty, CEL0):
        penalty = penalty.for_columns(atoms.norm(dim=1).clamp_min(1e-8))
    length = checked_step(step, atoms)
    codes, gaps, unfitted, unsettled, steps = [], [], 0, 0, 0
    for batch in rows.split(batch_size):
        found = solve(batch, atoms, penalty, step=length, stopping=stopping)
        unsettled += int((~found.settled).sum())
        steps = max(steps, int(found.steps.max()))
        if isinstance(penalty, L1):
            gaps.append(lasso_gap(batch, atoms, found.codes, penalty.strength).max())
        if fit_again:
            fitted, done = debias(batch, atoms, found.codes)
            unfitted += int((~done).sum())
            codes.append(fitted)
        else:
            codes.append(found.codes)
    joined = torch.cat(codes)
    counts = (joined != 0).sum(1)
    report = CodingReport(
        rows=len(rows),
        unsettled=unsettled,
        unfitted=unfitted,
        steps=steps,
        active=float(counts.double().mean()),
        empty=int((counts == 0).sum()),
        gap=float(torch.stack(gaps).max()) if gaps else None,
    )
    return joined, report


def chosen_solver(name: str) -> Solver:
    """Returns the solver of this name, or raises UnknownName."""
    if name not in get_args(SolverName):
        raise UnknownName("solver", str(name), SOLVERS)
    return SOLVERS[name]
