"""Methods that are several trainings, prunings and surgeries in a row."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

from sparsecraft.core.kinds.base import Method
from sparsecraft.core.mask import Mask


class Train(Protocol):
    """The caller's training: methods never know the task."""

    def __call__(self, model: Any, mask: Mask | None = None, *, branch: str) -> None:
        """Trains the model in place; entries that the mask prunes stay zero.

        A recipe whose branches differ in a setting (soups) gives it as a further keyword, such as
        `seed` or `weight_decay`, and one that trains under a method (Sparse-IFT) gives
        `sparsifier`, a function of the number of steps that returns the Sparsifier to attach. The
        recipe says so; a training for it takes these keywords.

        Args:
            model: A torch module.
            mask: What to hold at zero, by parameter name.
            branch: Name of this training, for seeds, progress and resuming.
        """


@dataclass(frozen=True, kw_only=True)
class Recipe(Method):
    """Several trainings, prunings and surgeries in a row."""

    @abstractmethod
    def run(self, model: Any, train: Train) -> Any:
        """Returns the outcome; see the method for its type."""
