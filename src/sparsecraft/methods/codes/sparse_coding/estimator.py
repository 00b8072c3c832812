"""What scikit-learn expects of an estimator, without importing it: parameters, clones, tags."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from typing import Any, Self

import numpy as np
from torch import Tensor

from sparsecraft.core.errors import InvalidValue, SparsityError, UnknownName
from sparsecraft.core.fidelity import ReconstructionSums
from sparsecraft.core.penalties import CEL0, Penalty, by_name
from sparsecraft.core.solvers import Stopping
from sparsecraft.methods.codes.sparse_coding.rows import as_rows

PAPER_STRENGTH = 0.27
"""Of CEL0 in the authors' notebook, for patches of 256 pixels and a variance of 0.1."""


class NotFitted(SparsityError, AttributeError):
    """An estimator was asked for what only `fit` gives it; a ValueError and an AttributeError."""


class Estimator(ABC):
    """A transformer whose parameters are the arguments of `__init__`, kept under their names."""

    @abstractmethod
    def fit(self, X: Any, y: Any = None) -> Self:
        """Returns the estimator, fitted to X (rows, d)."""

    @abstractmethod
    def transform(self, X: Any) -> Any:
        """Returns the codes (rows, components) of X (rows, d)."""

    @abstractmethod
    def inverse_transform(self, codes: Any) -> Any:
        """Returns the rows (rows, d) that codes (rows, components) stand for."""

    def fit_transform(self, X: Any, y: Any = None) -> Any:
        """Returns the codes of X after fitting to it."""
        return self.fit(X, y).transform(X)

    def score(self, X: Any, y: Any = None) -> float:
        """Returns the fraction of variance that the codes of X explain; the mean gives 0."""
        rows = as_rows(X)[0]
        sums = ReconstructionSums()
        sums.add(rows, self.inverse_transform(self.transform(rows)))
        return sums.explained_variance

    @property
    @abstractmethod
    def n_features_in_(self) -> int:
        """Width of the rows."""

    @property
    @abstractmethod
    def _n_features_out(self) -> int:
        """Width of the codes, under the name that scikit-learn knows."""

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Returns a name for each column of the codes, such as "sparsecoder0".

        Args:
            input_features: Names of the rows' entries, of which the codes' do not depend.

        Raises:
            InvalidValue: If there are not as many names as a row has entries.
        """
        if input_features is not None and len(input_features) != self.n_features_in_:
            raise InvalidValue(
                f"{len(input_features)} names were given: input_features should have length equal "
                f"to number of features, {self.n_features_in_}"
            )
        name = type(self).__name__.lower()
        return np.array([f"{name}{i}" for i in range(self._n_features_out)], dtype=object)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Returns the parameters by name.

        Args:
            deep: Accepted for scikit-learn's sake; no parameter is an estimator.
        """
        return {name: getattr(self, name) for name in self._names()}

    def set_params(self, **parameters: Any) -> Self:
        """Sets parameters by name, for the next fit, and returns the estimator.

        Raises:
            UnknownName: For a name that `__init__` does not have.
        """
        for name, value in parameters.items():
            if name not in self._names():
                raise UnknownName(f"parameter of {type(self).__name__}", name, self._names())
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        signature = inspect.signature(type(self).__init__).parameters
        shown = {
            name: value
            for name, value in self.get_params().items()
            if value is not signature[name].default
        }
        return f"{type(self).__name__}({', '.join(f'{k}={_brief(v)}' for k, v in shown.items())})"

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type=None,
            target_tags=TargetTags(required=False),
            transformer_tags=TransformerTags(),
            input_tags=InputTags(),
        )

    def __sklearn_is_fitted__(self) -> bool:
        return True

    @classmethod
    def _names(cls) -> list[str]:
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]


def chosen_penalty(penalty: str | Penalty, strength: float | None) -> Penalty:
    """Returns the penalty that two parameters mean.

    Raises:
        UnknownName: For an unknown name.
        SparsityError: If a penalty that is built already comes with a strength.

    Example:
        >>> chosen_penalty("cel0", None)
        CEL0(strength=0.27, norm=1.0)
    """
    if isinstance(penalty, Penalty):
        if strength is not None:
            raise SparsityError(
                f"strength={strength!r} was given beside {penalty}, which has its own: set it there"
            )
        return penalty
    return by_name(penalty, strength=PAPER_STRENGTH if strength is None else strength)


def check_column_norms(penalty: Penalty, norms: Tensor) -> None:
    """Raises InvalidValue if CEL0 has a norm that is not that of the atoms.

    Its norm is theirs by definition: left at one, it is taken from them, in learning and in coding
    alike.

    Args:
        penalty: Any.
        norms: (components,), of the atoms.
    """
    if not isinstance(penalty, CEL0) or penalty.norm == 1:
        return
    if not bool(((norms - penalty.norm).abs() <= 1e-4 * penalty.norm).all()):
        raise InvalidValue(
            f"{penalty} was given beside atoms with norms from {float(norms.min()):.4g} to "
            f"{float(norms.max()):.4g}: CEL0 takes its norm from the atoms, so leave it out; for a "
            "firm threshold of another shape give MCP(strength=norm * sqrt(2 * strength), "
            "reach=1 / norm**2)"
        )


def chosen_stopping(tolerance: float, max_steps: int, measure: Any) -> Stopping:
    """Returns the criterion that three parameters mean."""
    return Stopping(tolerance=tolerance, max_steps=max_steps, measure=measure)


def _brief(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return repr(value) if shape is None else f"<{type(value).__name__} {tuple(shape)}>"
