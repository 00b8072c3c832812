"""Figures of every targeted weight of a model."""

from __future__ import annotations

from torch import nn

from sparsecraft.core.weight_statistics import WeightStatistics, weight_statistics
from sparsecraft.model.targets import Select, find_targets


def weight_stats(model: nn.Module, targets: Select = None) -> dict[str, WeightStatistics]:
    """Returns largest weight, tails, mass near zero and histogram of every target, by its name.

    Of a model under a Sparsifier these are the raw weights; inside `sparsifier.exported()` they
    are the effective ones.

    Args:
        model: Any module.
        targets: Which weights; see `find_targets`.

    Raises:
        NoMatch: If there are none.

    Example:
        >>> found = weight_stats(nn.Sequential(nn.Linear(64, 64)))
        >>> found["0"].largest <= 1 / 8, round(found["0"].kurtosis)
        (True, 2)
    """
    found = find_targets(model, targets)
    parameters = dict(model.named_parameters())
    return {t.name: weight_statistics(t.view(parameters[t.parameter])) for t in found}
