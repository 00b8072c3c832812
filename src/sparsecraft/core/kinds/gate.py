"""Methods that make activations sparse at inference."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from sparsecraft.core.errors import InvalidValue, MissingStatistic
from sparsecraft.core.gating import ActivationGate
from sparsecraft.core.kinds.base import Method
from sparsecraft.core.thresholds import exact_threshold


@dataclass(frozen=True)
class GateSite:
    """What a Gate method knows of one place where activations are gated.

    Args:
        name: Name of the module whose input (or output) is gated.
        features: Entries of a token there.
        sparsity: Fraction of a token's entries to drop there, in [0, 1); the allocation's share.
        weight: (outputs, features), float32, the matrix that the entries are multiplied with;
            None where the output of an activation function is gated.
        orthogonal: Whether the matrix is one that the rotation gives orthogonal columns.
        values: (tokens, features), the calibration activations there, or None.
        seed: The run's seed.
    """

    name: str
    features: int
    sparsity: float
    weight: Tensor | None = None
    orthogonal: bool = False
    values: Tensor | None = None
    seed: int = 0

    def keep(self) -> int:
        """Returns int(features * (1 - sparsity)), what a token keeps under an exact count.

        Raises:
            InvalidValue: If that is nothing.
        """
        keep = int(self.features * (1 - self.sparsity))
        if keep < 1:
            raise InvalidValue(
                f"{self.name}: sparsity {self.sparsity:g} of {self.features} entries keeps none. "
                f"Ask for at most {_most_sparsity(self.features):g} there, or leave it out of the "
                "targets."
            )
        return keep

    def most(self) -> float:
        """Returns the largest sparsity at which a token still keeps an entry."""
        # A little less than 1 - 1 / features: the count is truncated, and would fall to zero.
        return max(0.0, 1 - (1 + 1e-9) / self.features)

    def threshold(self, norms: Tensor | None = None) -> float:
        """Returns what the calibration scores exceed in exactly the share 1 - sparsity.

        Args:
            norms: (features,) factors of the scores, or None for ones.

        Raises:
            MissingStatistic: If there are no calibration values.
        """
        if self.values is None:
            raise MissingStatistic(
                f"{self.name}: a threshold is chosen on data, and none was given or none reached "
                "this place. Give calibration data (calibration=..., --calibration text.txt), or "
                'keep an exact count (rule="topk").'
            )
        scores = ActivationGate(threshold=0.0, norms=norms).scores(self.values)
        return exact_threshold(scores, self.sparsity)


@dataclass(frozen=True, kw_only=True)
class Gate(Method):
    """Makes activations sparse at inference, differently for each token.

    The host, `sparsecraft.gate`, finds the places, gathers the calibration activations, puts the
    gates in as hooks, and saves them. A method says what is gated and fits one gate to each place.
    """

    sites: ClassVar[Literal["inputs", "gated activations", "activations"]] = "inputs"
    """What is gated: the inputs of the targeted matrices, or what the activation function of an
    MLP gives: of those with a gate branch only, or of any."""

    @abstractmethod
    def asked(self, features: int) -> float:
        """Returns the sparsity asked where a token has this many entries, in [0, 1)."""

    @abstractmethod
    def fit(self, site: GateSite) -> ActivationGate:
        """Returns the gate of one place.

        Args:
            site: Its width, share, weight and calibration activations.
        """

    def prepare(self, model: Any) -> Any:
        """Changes the model before its places are found, such as by a rotation.

        Returns:
            What takes it back by `undo()`; None if nothing was changed. If it has a `report`, the
            `notes` of that are told to the user.
        """
        return None

    def needs_values(self) -> bool:
        """Returns whether `fit` needs calibration activations."""
        return False

    def greedy_step(self) -> float | None:
        """Returns the step of a greedy allocation within each block, None for a uniform one."""
        return None

    def on_gated_inputs(self) -> bool:
        """Returns whether a block is calibrated on what comes through the gated ones before it."""
        return False

    def remarks(self) -> Iterable[str]:
        """Returns what the report shall say beside the figures, in plain words."""
        return ()


def _most_sparsity(features: int) -> float:
    """Returns a sparsity, rounded down, at which one entry of so many is kept."""
    return int((1 - 1 / features) * 1000) / 1000
