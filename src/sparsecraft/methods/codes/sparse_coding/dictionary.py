"""Dictionaries learned from rows, for any penalty of the codes.

Batch by batch, codes are found for the dictionary as it is, and the dictionary then takes one
gradient step. `as_in_paper` gives the run of Rentzeperis et al. (2023): steps of
set length, one criterion for the whole batch, thresholds in their convention. By default the step
follows from the dictionary, and rows stop one by one.

Beyond the paper, a step of the dictionary that would overshoot (longer than 2 over the codes'
largest squared singular value) is shortened to half of that and counted, so that rows of another
scale than the paper's patches do not make the dictionary diverge. So is a step of the codes that is
too long for the dictionary as it has become: the norm of a dictionary grows and falls while it
learns (at the start of a run with 10,000 atoms the paper's 0.05 is too long), and a fit must not
end midway for that.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.penalties import Penalty
from sparsecraft.core.seeds import generator
from sparsecraft.core.solvers import Decay
from sparsecraft.core.solvers.steps import Step, shortened_step
from sparsecraft.core.solvers.stopping import Measure
from sparsecraft.methods.codes.sparse_coding.batches import learn_batch, unit_rows
from sparsecraft.methods.codes.sparse_coding.coder import (
    STEP_RULES,
    SolverName,
    SparseCoder,
    chosen_solver,
)
from sparsecraft.methods.codes.sparse_coding.estimator import chosen_penalty, chosen_stopping
from sparsecraft.methods.codes.sparse_coding.files import read_learner, write_learner
from sparsecraft.methods.codes.sparse_coding.first import check_settings, first_dictionary
from sparsecraft.methods.codes.sparse_coding.learned import Learned
from sparsecraft.methods.codes.sparse_coding.preprocessing import Whitening
from sparsecraft.methods.codes.sparse_coding.progress import Progress
from sparsecraft.methods.codes.sparse_coding.rows import as_rows


class DictionaryLearning(Learned):
    """Learns atoms of which rows are sparse sums; a scikit-learn transformer.

    After `fit`: `components_` (n_components, d) with rows of norm one, `n_iter_` batches,
    `activity_` (the share of rows in which each atom was active), `errors_` (each batch's mean
    squared residual) and `report_`. A `ConvergenceWarning` counts rows that did not settle.

    Args:
        n_components: Atoms; by default as many as a row has entries.
        penalty: Of the codes: a penalty, or the name of one ("cel0", "l1", "l0", "half", ...).
            CEL0's norm is one, as the atoms' is. A penalty that couples rows (a budget of the batch
            or of a feature) needs measure="batch".
        strength: Of a penalty given by name, in the convention with 1/2; by default 0.27, which
            suits patches of 256 pixels and variance 0.1.
        learning_rate: Of the dictionary's gradient, which is a sum over the batch.
        batches: Steps of the dictionary that `fit` takes; rows are shuffled anew in each pass.
        batch_size: Rows of a batch, all of them if there are fewer.
        solver: "ista", "fista" with momentum, or "lca", neurons that inhibit one another (with it
            a tolerance of 1e-3 is about what 1e-2 is with the others).
        step: Length of the codes' steps, or "auto", 1 / ||dictionary||^2 for each batch. In a batch
            for whose dictionary it is too long, "auto" takes its place, which `report_` counts.
        tolerance: Relative change under which a code has settled.
        max_steps: After which rows are given up: they do not move the dictionary, and are counted.
        measure: "row", or "batch" for the paper's criterion, by which a whole batch is given up.
        decay: Whether both rates fall with time, as the paper's do for CEL0 with many atoms.
        decay_thresholds: Whether the penalty's thresholds fall with the step of the codes, as they
            should; the authors' code leaves them at the first step.
        debias: Whether `transform` fits entries again on their support.
        start: The first dictionary (n_components, d); by default drawn from a normal.
        warm_start: Whether `fit` goes on from where it is until `batches` are done.
        seed: Of the first dictionary and of the order of rows.

    Example:
        >>> import numpy as np
        >>> rows = np.random.default_rng(0).normal(size=(200, 8))
        >>> learner = DictionaryLearning(12, penalty="l1", strength=0.5, batches=20, batch_size=50)
        >>> learner.fit(rows).components_.shape, learner.transform(rows).shape
        ((12, 8), (200, 12))

    Reference:
        Rentzeperis et al., 2023, arXiv 2301.10002, methods; Olshausen and Field, 1996, Nature 381.
    """

    def __init__(
        self,
        n_components: int | None = None,
        *,
        penalty: str | Penalty = "cel0",
        strength: float | None = None,
        learning_rate: float = 5e-3,
        batches: int = 1000,
        batch_size: int = 250,
        solver: SolverName = "ista",
        step: Step = "auto",
        tolerance: float = 1e-2,
        max_steps: int = 2000,
        measure: Measure = "row",
        decay: bool = False,
        decay_thresholds: bool = False,
        debias: bool = False,
        start: Any = None,
        warm_start: bool = False,
        seed: int = 0,
    ) -> None:
        self.n_components = n_components
        self.penalty = penalty
        self.strength = strength
        self.learning_rate = learning_rate
        self.batches = batches
        self.batch_size = batch_size
        self.solver = solver
        self.step = step
        self.tolerance = tolerance
        self.max_steps = max_steps
        self.measure = measure
        self.decay = decay
        self.decay_thresholds = decay_thresholds
        self.debias = debias
        self.start = start
        self.warm_start = warm_start
        self.seed = seed

    def fit(
        self, X: Any, y: Any = None, *, progress: Callable[[int, int], None] | None = None
    ) -> Self:
        """Returns the learner, fitted to X (rows, d).

        Args:
            X: Rows, NumPy or torch.
            y: Not used.
            progress: Told (batches done, batches in all); may save the learner.

        Raises:
            InvalidValue: If shapes, types or settings are not allowed.
            NonFinite: For NaN or infinite entries.

        Warns:
            ConvergenceWarning: If rows did not settle, or codes took shorter steps than was asked.
        """
        rows = self._begin(X, anew=not self.warm_start)
        if not isinstance(self.batches, int) or self.batches < 1:
            raise InvalidValue(f"batches={self.batches!r} is not allowed: give at least 1")
        before = self._progress.report()
        size = min(self.batch_size, len(rows))
        in_pass = len(rows) // size
        while self._progress.batches < self.batches:
            epoch, position = divmod(self._progress.batches, in_pass)
            order = torch.randperm(len(rows), generator=generator(self.seed, "order", epoch))
            self._learn(rows[order[position * size : (position + 1) * size]])
            if progress is not None:
                progress(self._progress.batches, self.batches)
        self.report_.warn_since(before, self.step)
        return self

    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Returns the learner after one pass over X in its order, going on from where it is."""
        rows = self._begin(X, anew=False)
        before = self._progress.report()
        for batch in rows.split(self.batch_size):
            self._learn(batch)
        self.report_.warn_since(before, self.step)
        return self

    def transform(self, X: Any) -> Any:
        """Returns the codes (rows, n_components) of X; `coding_report_` says how it went.

        Raises:
            NotFitted: Before a fit.
        """
        coder = self._coder()
        coder._reader, coder._may_shorten = type(self).__name__, True
        codes = coder.transform(X)
        self.coding_report_ = coder.report_
        return codes

    def inverse_transform(self, codes: Any) -> Any:
        """Returns (rows, d), the sums of atoms that the codes stand for."""
        return self._coder().inverse_transform(codes)

    def save(self, path: Path | str, *, whitening: Whitening | None = None) -> None:
        """Writes the learner as it stands, also in the middle of a fit.

        Args:
            path: A safetensors file.
            whitening: How the rows were prepared, kept beside them; by default `whitening_`, which
                a loaded learner has from its file.

        Raises:
            NotFitted: Before a fit.
            CheckpointError: If it cannot be written; what was there is kept.
        """
        settings = {**self.get_params(), "start": None}
        kept = self.whitening_ if whitening is None else whitening
        write_learner(Path(path), settings, self._known(), self._progress, kept)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Returns a learner that `save` wrote; with `warm_start=True`, `fit` completes its batches.

        Raises:
            CheckpointError: If the file is missing, damaged or of another kind.
        """
        settings, dictionary, progress, whitening = read_learner(Path(path))
        learner = cls(**settings)
        learner._dictionary, learner._progress, learner.whitening_ = dictionary, progress, whitening
        return learner

    def _begin(self, X: Any, *, anew: bool) -> Tensor:
        """Returns the rows, after making the first dictionary if there is none to go on from."""
        known = None if anew else self._dictionary
        rows, _ = as_rows(X, None if known is None else known.shape[1], reader=type(self).__name__)
        check_settings(self.get_params())
        if known is None:
            self._dictionary = first_dictionary(rows, self.n_components, self.start, self.seed)
            self._progress = Progress.start(len(self._dictionary))
            self.whitening_ = None
        else:
            self._dictionary = known.to(rows)
        self._torch = isinstance(X, Tensor)
        return rows

    def _learn(self, batch: Tensor) -> None:
        dictionary = self._known()
        step, rate, shortened = self._rates(unit_rows(dictionary))
        found = learn_batch(
            batch,
            dictionary,
            chosen_penalty(self.penalty, self.strength),
            step=step,
            rate=rate,
            stopping=chosen_stopping(self.tolerance, self.max_steps, self.measure),
            solver=chosen_solver(self.solver),
        )
        self._dictionary = found.dictionary
        self._progress.add(found, coding_shortened=shortened)

    def _rates(self, atoms: Tensor) -> tuple[float | Decay, float, bool]:
        """Returns the codes' step, the dictionary's rate, and whether the step was too long."""
        length, shortened = shortened_step(self.step, atoms, STEP_RULES[self.solver])
        if self.decay:
            rate = Decay(first=self.learning_rate)(self._progress.updates)
            steps = Decay(first=length, thresholds=self.decay_thresholds)
            return steps, rate, shortened
        return length, self.learning_rate, shortened

    def _coder(self) -> SparseCoder:
        return SparseCoder(
            self._atoms(),
            penalty=self.penalty,
            strength=self.strength,
            solver=self.solver,
            step=self.step,
            tolerance=self.tolerance,
            max_steps=self.max_steps,
            measure=self.measure,
            debias=self.debias,
        )
