"""Dictionaries learned from rows, for any penalty of the codes.

Batch by batch, codes are found for the dictionary as it is, and the dictionary then takes one
gradient step. `as_in_paper` gives the run of Rentzeperis et al. (2023): steps of
set length, one criterion for the whole batch, thresholds in their convention. By default the step
follows from the dictionary, and rows stop one by one.

Beyond the paper, a step of the dictionary that would overshoot (longer than 2 over the codes'
largest squared singular value) is shortened to half of that and counted, so that rows of another
scale than the paper's patches do not make the dictionary diverge.
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
from sparsecraft.core.solvers.proximal import Step, checked_step
from sparsecraft.core.solvers.stopping import Measure
from sparsecraft.methods.codes.sparse_coding.batches import learn_batch, unit_rows
from sparsecraft.methods.codes.sparse_coding.coder import (
    SolverName,
    SparseCoder,
    chosen_solver,
)
from sparsecraft.methods.codes.sparse_coding.estimator import (
    Estimator,
    NotFitted,
    chosen_penalty,
    chosen_stopping,
)
from sparsecraft.methods.codes.sparse_coding.files import read_learner, write_learner
from sparsecraft.methods.codes.sparse_coding.first import check_settings, first_dictionary
from sparsecraft.methods.codes.sparse_coding.preprocessing import Whitening
from sparsecraft.methods.codes.sparse_coding.progress import LearningReport, Progress
from sparsecraft.methods.codes.sparse_coding.rows import as_rows


class DictionaryLearning(Estimator):
    """Learns atoms of which rows are sparse sums; a scikit-learn transformer.

    After `fit`: `components_` (n_components, d) with rows of norm one, `n_iter_` batches,
    `activity_` (the share of rows in which each atom was active), `errors_` (each batch's mean
    squared residual) and `report_`.

    Args:
        n_components: Atoms; by default as many as a row has entries.
        penalty: Of the codes: a penalty, or the name of one ("cel0", "l1", "l0", "half", ...).
        strength: Of a penalty given by name, in the convention with 1/2; by default 0.27, which
            suits patches of 256 pixels and variance 0.1.
        learning_rate: Of the dictionary's gradient, which is a sum over the batch.
        batches: Steps of the dictionary that `fit` takes; rows are shuffled anew in each pass.
        batch_size: Rows of a batch, all of them if there are fewer.
        solver: "ista", or "fista" with momentum.
        step: Length of the codes' steps, or "auto", 1 / ||dictionary||^2 for each batch.
        tolerance: Relative change under which a code has settled.
        max_steps: After which rows are given up: they do not move the dictionary, and are counted.
        measure: "row", or "batch" for the paper's criterion, by which a whole batch is given up.
        decay: Whether both rates fall with time, as the paper's do for CEL0 with many atoms.
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

    whitening_: Whitening | None = None
    """How the rows of a loaded learner were prepared, if its file says so."""
    _dictionary: Tensor | None = None
    _torch = False

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
        """
        rows = self._begin(X, anew=not self.warm_start)
        if not isinstance(self.batches, int) or self.batches < 1:
            raise InvalidValue(f"batches={self.batches!r} is not allowed: give at least 1")
        size = min(self.batch_size, len(rows))
        in_pass = len(rows) // size
        while self._progress.batches < self.batches:
            epoch, position = divmod(self._progress.batches, in_pass)
            order = torch.randperm(len(rows), generator=generator(self.seed, "order", epoch))
            self._learn(rows[order[position * size : (position + 1) * size]])
            if progress is not None:
                progress(self._progress.batches, self.batches)
        return self

    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Returns the learner after one pass over X in its order, going on from where it is."""
        for batch in self._begin(X, anew=False).split(self.batch_size):
            self._learn(batch)
        return self

    def transform(self, X: Any) -> Any:
        """Returns the codes (rows, n_components) of X; `coding_report_` says how it went.

        Raises:
            NotFitted: Before a fit.
        """
        coder = self._coder()
        coder._reader = type(self).__name__
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
            whitening: How the rows were prepared, kept beside them.

        Raises:
            NotFitted: Before a fit.
            CheckpointError: If it cannot be written; what was there is kept.
        """
        settings = {**self.get_params(), "start": None}
        write_learner(Path(path), settings, self._known(), self._progress, whitening)

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

    @property
    def components_(self) -> Any:
        """The atoms (n_components, d), of norm one, in the kind of the rows that were fitted."""
        atoms = self._atoms()
        return atoms if self._torch else atoms.numpy()

    @property
    def n_features_in_(self) -> int:
        """Width of the rows."""
        return self._atoms().shape[1]

    @property
    def n_iter_(self) -> int:
        """Batches seen."""
        return self._done().batches

    @property
    def activity_(self) -> Any:
        """(n_components,): the share of the rows learned from in which each atom was active."""
        share = self._done().activity()
        return share if self._torch else share.numpy()

    @property
    def errors_(self) -> list[float]:
        """The mean squared residual of each batch that moved the dictionary."""
        return list(self._done().errors)

    @property
    def report_(self) -> LearningReport:
        """How the learning went: rows given up, dead atoms, steps shortened."""
        return self._done().report()

    def __sklearn_is_fitted__(self) -> bool:
        return self._dictionary is not None

    def _begin(self, X: Any, *, anew: bool) -> Tensor:
        """Returns the rows, after making the first dictionary if there is none to go on from."""
        known = None if anew else self._dictionary
        rows, _ = as_rows(X, None if known is None else known.shape[1], reader=type(self).__name__)
        check_settings(self.get_params())
        if known is None:
            self._dictionary = first_dictionary(rows, self.n_components, self.start, self.seed)
            self._progress = Progress.start(len(self._dictionary))
        else:
            self._dictionary = known.to(rows)
        self._torch = isinstance(X, Tensor)
        return rows

    def _learn(self, batch: Tensor) -> None:
        dictionary = self._known()
        step, rate = self._rates(unit_rows(dictionary))
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
        self._progress.add(found)

    def _rates(self, atoms: Tensor) -> tuple[float | Decay, float]:
        if self.decay:
            rate = Decay(first=self.learning_rate)(self._progress.updates)
            return Decay(first=checked_step(self.step, atoms)), rate
        return checked_step(self.step, atoms), self.learning_rate

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

    def _atoms(self) -> Tensor:
        return unit_rows(self._known())

    def _done(self) -> Progress:
        self._known()
        return self._progress

    def _known(self) -> Tensor:
        if self._dictionary is None:
            raise NotFitted(
                f"this {type(self).__name__} has no dictionary yet: call fit or partial_fit first"
            )
        return self._dictionary
