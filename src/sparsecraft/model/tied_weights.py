"""Gives tied matrices a life of their own, and ties them again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from sparsecraft.model.targets import ties

Tie = tuple[str, str]
"""(the name that stays, the name that was another one of the same parameter)."""


def untie(model: nn.Module, names: Sequence[str]) -> tuple[Tie, ...]:
    """Gives each of these names a parameter of its own, and says so in the model's config.

    Args:
        model: Any module.
        names: Parameters, some of which may be one and the same.

    Returns:
        The ties that were cut, for `tie`.

    Example:
        >>> model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
        >>> model["b"].weight = model["a"].weight
        >>> untie(model, ["a.weight", "b.weight"])
        (('a.weight', 'b.weight'),)
        >>> model["b"].weight is model["a"].weight
        False
    """
    cut = tuple(
        (first, other)
        for first, others in ties(model).items()
        for other in others
        if first in names and other in names
    )
    for first, other in cut:
        shared = model.get_parameter(first)
        _set(model, other, nn.Parameter(shared.detach().clone(), shared.requires_grad))
    _say(model, cut, tied=False)
    return cut


def tie(model: nn.Module, cut: Sequence[Tie]) -> None:
    """Makes the second name of each pair the parameter of the first again."""
    for first, other in cut:
        _set(model, other, model.get_parameter(first))
    _say(model, cut, tied=True)


def _set(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, short = name.rpartition(".")
    setattr(model.get_submodule(owner), short, parameter)


def _say(model: nn.Module, cut: Sequence[Tie], *, tied: bool) -> None:
    """Keeps the config true: a model built from it would tie the two on loading."""
    config: Any = getattr(model, "config", None)
    if cut and hasattr(config, "tie_word_embeddings"):
        config.tie_word_embeddings = tied
