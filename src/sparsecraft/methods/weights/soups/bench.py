"""Where candidates and soups are recalibrated and scored: a copy of the model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import MissingStatistic
from sparsecraft.methods.weights.soups.averaging import State
from sparsecraft.model.batch_norm import has_batch_norm

Recalibrate = Callable[[nn.Module], Any]
Evaluate = Callable[[nn.Module], float]
NO_EVALUATE = (
    "a greedy soup chooses its candidates on held-out data. Give evaluate=lambda model: accuracy "
    "on the validation part, never the test."
)


class Bench:
    """A model on which state dicts are recalibrated and scored.

    Args:
        model: It stays as it is.
        recalibrate: See `SparseModelSoup.run`.
        evaluate: See `SparseModelSoup.run`.
    """

    def __init__(
        self, model: nn.Module, recalibrate: Recalibrate | None, evaluate: Evaluate | None
    ) -> None:
        self.scratch = copy.deepcopy(model)
        self.recalibrate = recalibrate
        self.evaluate = evaluate

    def recalibrated(self, state: State) -> dict[str, Tensor]:
        """Returns the state dict with fresh statistics of batch normalisation."""
        if self.recalibrate is None:
            return dict(state)
        self.scratch.load_state_dict(state)
        self.recalibrate(self.scratch)
        return {key: value.detach().clone() for key, value in self.scratch.state_dict().items()}

    def score(self, state: State) -> float:
        """Returns the score of a state dict.

        Raises:
            MissingStatistic: If nothing scores.
        """
        if self.evaluate is None:
            raise MissingStatistic(NO_EVALUATE)
        self.scratch.load_state_dict(state)
        with torch.no_grad():
            return float(self.evaluate(self.scratch))

    def score_or_none(self, state: State) -> float | None:
        """Returns the score of a state dict, or None where nothing scores."""
        return None if self.evaluate is None else self.score(state)


def check_recalibrated(model: nn.Module, recalibrate: Recalibrate | None) -> None:
    """Raises MissingStatistic if averages of this model would keep statistics of no model."""
    if recalibrate is None and has_batch_norm(model):
        raise MissingStatistic(
            "the model has batch normalisation, whose statistics an average of models must gather "
            "anew. Give recalibrate=functools.partial(recalibrate, batches=...), of "
            "sparsecraft.model.batch_norm."
        )
