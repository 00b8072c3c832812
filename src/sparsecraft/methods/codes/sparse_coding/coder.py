"""Codes of rows in a dictionary that is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

from sparsecraft.core.errors import ConvergenceWarning, InvalidValue, UnknownName, warn_caller
from sparsecraft.core.penalties import CEL0, L1, Penalty
from sparsecraft.core.solvers import Stopping, debias, fista, ista, lasso_gap, lca
from sparsecraft.core.solvers.steps import (
    COMPETITION,
    MOMENTUM,
    PLAIN,
    Step,
    StepRule,
    checked_step,
    shortened_step,
)
from sparsecraft.core.solvers.stopping import Measure
from sparsecraft.methods.codes.sparse_coding.batches import SMALLEST_NORM, Solver
from sparsecraft.methods.codes.sparse_coding.estimator import (
    Estimator,
    check_column_norms,
    chosen_penalty,
    chosen_stopping,
)
from sparsecraft.methods.codes.sparse_coding.rows import as_rows

SolverName = Literal["ista", "fista", "lca"]
SOLVERS: dict[str, Solver] = {"ista": ista, "fista": fista, "lca": lca}
STEP_RULES: dict[str, StepRule] = {"ista": PLAIN, "fista": MOMENTUM, "lca": COMPETITION}


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
        shortened: Whether the step that was asked would have diverged, and "auto" took its place.
    """

    rows: int
    unsettled: int
    unfitted: int
    steps: int
    active: float
    empty: int
    gap: float | None = None
    shortened: bool = False

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
            told.append(
                f"{self.empty} have no entry: the strength is too great for them or, with a "
                "threshold that jumps (l0, half), the step too short to leave zero"
            )
        if self.gap is not None:
            told.append(f"at most {self.gap:.2g} above the best objective")
        if self.shortened:
            told.append('the step was too long for this dictionary: "auto" took its place')
        return "; ".join(told)

    def warn(self) -> None:
        """Warns of rows that did not settle, which their codes do not show."""
        if self.unsettled:
            warn_caller(
                f"{self.unsettled} of {self.rows} rows did not settle; their codes are the last "
                "ones: raise max_steps or tolerance",
                ConvergenceWarning,
            )
        if self.unfitted:
            warn_caller(
                f"{self.unfitted} of {self.rows} rows were debiased only in part",
                ConvergenceWarning,
            )


class SparseCoder(Estimator):
    """Writes rows as sparse sums of given atoms; a scikit-learn transformer.

    NumPy arrays give NumPy arrays, tensors give tensors. `report_` says how the last coding went;
    a `ConvergenceWarning` counts the rows that did not settle.

    Args:
        dictionary: (components, d), an atom in each row, of any norm above 0.
        penalty: A penalty of `sparsecraft.core.penalties`, or the name of one, such as "l1", "l0",
            "cel0" or "half". CEL0 takes its norms from the atoms. One that couples rows (a budget
            of the batch or of a feature) needs measure="batch".
        strength: Of a penalty given by name, in the convention with 1/2; by default 0.27.
        solver: "ista", "fista" with momentum, or "lca", neurons that inhibit one another.
        step: Length of the gradient's step, at most 2 / ||dictionary||^2 (half of that for fista),
            or "auto", 1 / ||dictionary||^2.
        tolerance: Relative change under which a row has settled.
        max_steps: After which a row is given up, which `report_` counts.
        measure: "row", or "batch" for the paper's criterion over all rows at once.
        debias: Whether entries are fitted again, by least squares on the support found.
        batch_size: Rows that are coded at once; for a penalty that couples rows, the rows that
            share a budget.

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

        Warns:
            ConvergenceWarning: If rows did not settle; their codes are the last ones.
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
            may_shorten=self._may_shorten,
        )
        self.report_.warn()
        return back(codes)

    def inverse_transform(self, codes: Any) -> Any:
        """Returns (rows, d), the sums of atoms that the codes stand for."""
        atoms = as_rows(self.dictionary, what="the dictionary")[0]
        rows, back = as_rows(codes, len(atoms), "the code")
        return back(rows @ atoms.to(rows))

    _reader = "SparseCoder"
    _may_shorten = False

    @property
    def n_features_in_(self) -> int:
        """Width of the rows."""
        return as_rows(self.dictionary, what="the dictionary")[0].shape[1]

    @property
    def _n_features_out(self) -> int:
        return len(as_rows(self.dictionary, what="the dictionary")[0])


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
    may_shorten: bool = False,
) -> tuple[Tensor, CodingReport]:
    """Returns the codes of rows, batch by batch, and how it went; arguments as of `SparseCoder`.

    With `may_shorten` a step that would diverge is no error: "auto" takes its place.
    """
    solve = chosen_solver(solver)
    if not isinstance(batch_size, int) or batch_size < 1:
        raise InvalidValue(f"batch_size={batch_size!r} is not allowed: give at least 1")
    if isinstance(penalty, CEL0):
        norms = atoms.norm(dim=1).clamp_min(SMALLEST_NORM)
        check_column_norms(penalty, norms)
        penalty = penalty.for_columns(norms)
    choose = shortened_step if may_shorten else _exact_step
    length, shortened = choose(step, atoms, STEP_RULES[solver])
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
        shortened=shortened,
    )
    return joined, report


def _exact_step(step: Step, atoms: Tensor, rule: StepRule) -> tuple[float, bool]:
    return checked_step(step, atoms, rule), False


def chosen_solver(name: str) -> Solver:
    """Returns the solver of this name, or raises UnknownName."""
    if name not in get_args(SolverName):
        raise UnknownName("solver", str(name), SOLVERS)
    return SOLVERS[name]
