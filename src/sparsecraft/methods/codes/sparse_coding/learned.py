"""What a learner of dictionaries knows once it is fitted, under scikit-learn's names."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sparsecraft.methods.codes.sparse_coding.batches import unit_rows
from sparsecraft.methods.codes.sparse_coding.estimator import Estimator, NotFitted
from sparsecraft.methods.codes.sparse_coding.preprocessing import Whitening
from sparsecraft.methods.codes.sparse_coding.progress import LearningReport, Progress


class Learned(Estimator):
    """An estimator with a dictionary, counts of its batches, and how its rows were prepared."""

    whitening_: Whitening | None = None
    """How a loaded learner's rows were prepared, if its file says so; a fit anew forgets it."""
    _dictionary: Tensor | None = None
    _progress: Progress
    _torch = False

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
    def _n_features_out(self) -> int:
        return len(self._known())

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
