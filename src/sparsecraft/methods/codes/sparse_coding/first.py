"""What a learner starts from: checked settings, a first dictionary, the paper's own settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.penalties import Penalty, by_name, without_half
from sparsecraft.core.seeds import generator
from sparsecraft.core.solvers.problem import check_coupling
from sparsecraft.core.solvers.steps import check_length
from sparsecraft.methods.codes.sparse_coding.coder import chosen_solver
from sparsecraft.methods.codes.sparse_coding.estimator import (
    check_column_norms,
    chosen_penalty,
    chosen_stopping,
)
from sparsecraft.methods.codes.sparse_coding.rows import as_rows

DECAYING_FROM = 500
"""Atoms above which the paper's CEL0 lets its rates fall."""
HALVED = {"soft": False, "hard": True, "half": True, "cel0": False}
"""The paper's methods, and whether their strength is meant without the 1/2."""


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raises if a learner's settings are not allowed, before anything is changed.

    Args:
        settings: Parameters of `DictionaryLearning` by name.

    Raises:
        InvalidValue: For a number out of range, or rates that fall without a first step.
        UnknownName: For an unknown penalty, solver or criterion.
    """
    penalty = chosen_penalty(settings["penalty"], settings["strength"])
    check_column_norms(penalty, torch.ones(1))
    stopping = chosen_stopping(*(settings[name] for name in ("tolerance", "max_steps", "measure")))
    check_coupling(penalty, stopping)
    chosen_solver(settings["solver"])
    check_length(settings["step"])
    rate, size = settings["learning_rate"], settings["batch_size"]
    if not (isinstance(rate, int | float) and 0 < rate < math.inf):
        raise InvalidValue(f"learning_rate={rate!r} is not allowed: give a number above 0")
    if not isinstance(size, int) or size < 1:
        raise InvalidValue(f"batch_size={size!r} is not allowed: give at least 1")
    if settings["decay_thresholds"] and not settings["decay"]:
        raise InvalidValue("decay_thresholds=True says how rates fall: give decay=True too")
    if settings["decay"] and (settings["step"] == "auto" or settings["solver"] != "ista"):
        raise InvalidValue(
            f"decay=True with step={settings['step']!r} and solver={settings['solver']!r}: rates "
            "that fall need a first step (0.05 in the paper) and ista"
        )


def first_dictionary(rows: Tensor, count: int | None, start: Any, seed: int) -> Tensor:
    """Returns (count, d): the start that was given, or normal entries of variance 1 / count.

    Args:
        rows: (rows, d).
        count: Atoms, or None for d.
        start: (count, d), or None.
        seed: Of the draw.

    Raises:
        InvalidValue: If the count or the start's shape is not allowed.
    """
    width = rows.shape[1]
    count = width if count is None else count
    if not isinstance(count, int) or count < 1:
        raise InvalidValue(f"n_components={count!r} is not allowed: give at least 1")
    if start is None:
        drawn = torch.randn(count, width, generator=generator(seed, "dictionary"))
        return (drawn / math.sqrt(count)).to(rows)
    given = as_rows(start, width, "start")[0]
    if len(given) != count:
        raise InvalidValue(f"start has {len(given)} atoms, but n_components is {count}")
    return given.to(rows)


def paper_penalty(name: str, strength: float) -> Penalty:
    """Returns the penalty that the paper's lambda means for one of its methods.

    Args:
        name: "soft", "hard", "half" or "cel0".
        strength: Lambda; hard and half are meant without the 1/2.

    Raises:
        UnknownName: For another method.

    Example:
        >>> paper_penalty("hard", 0.5)
        L0(strength=0.25)
    """
    if name not in HALVED:
        raise UnknownName("method of the paper", str(name), HALVED)
    return (without_half if HALVED[name] else by_name)(name, strength=strength)


def as_in_paper(name: str, n_components: int) -> dict[str, Any]:
    """Returns the settings of `DictionaryLearning` by which the paper ran a method.

    The penalty is not among them: the strength is swept, see `paper_penalty`.

    Args:
        name: "soft", "hard", "half" or "cel0".
        n_components: Atoms.

    Example:
        >>> as_in_paper("cel0", 1000)["decay"]
        True

    Reference:
        Rentzeperis et al., 2023, arXiv 2301.10002, methods, and the notebook of their code.
    """
    if name not in HALVED:
        raise UnknownName("method of the paper", str(name), HALVED)
    return {
        "n_components": n_components,
        "step": 0.05,
        "learning_rate": 5e-3,
        "batches": 4000,
        "batch_size": 250,
        "tolerance": 1e-2,
        "max_steps": 5000,
        "measure": "batch",
        "decay": name == "cel0" and n_components > DECAYING_FROM,
    }
