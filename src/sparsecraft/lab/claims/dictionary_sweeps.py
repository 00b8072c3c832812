"""Dictionaries learned at one strength, and what their codes leave of rows: a sweep's points.

Small budgets share a rate of the dictionary and a batch that suit small patches; the full budget
runs with the settings of Rentzeperis et al. (2023).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sparsecraft.core.errors import ConvergenceWarning
from sparsecraft.lab.claims.dictionary_baselines import unexplained
from sparsecraft.methods.codes.sparse_coding import DictionaryLearning, SparseCoder, as_in_paper

RATE, BATCH = 2e-2, 200
PAPER = as_in_paper("soft", 1000)
"""The settings of the paper that all its methods share; CEL0's rates fall beside."""


def work_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns rate, batches and batch size of a learner, alike for all methods of a budget.

    Args:
        settings: Of a cell: "batches", and "as_in_paper" where that is asked.
    """
    if settings.get("as_in_paper"):
        return {name: PAPER[name] for name in ("learning_rate", "batches", "batch_size")}
    return {"learning_rate": RATE, "batches": settings["batches"], "batch_size": BATCH}


def learned(
    rows: Tensor, name: str, strength: float, settings: Mapping[str, Any], seed: int
) -> DictionaryLearning:
    """Returns the dictionary of a method at one strength.

    Args:
        rows: (rows, d).
        name: "soft", "hard", "half" or "cel0".
        strength: In the convention with 1/2.
        settings: Of a cell: "atoms", and those of `work_of`.
        seed: Of the first dictionary and of the rows' order.
    """
    options = {"n_components": settings["atoms"], **work_of(settings)}
    if settings.get("as_in_paper"):
        options = as_in_paper(name, settings["atoms"])
    return fitted(rows, penalty=name, strength=strength, seed=seed, **options)


def fitted(rows: Tensor, **options: Any) -> DictionaryLearning:
    """Returns a fitted learner; the claim's table tells what it gave up, so no warning does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return DictionaryLearning(**options).fit(rows)


def left_by_codes(
    atoms: Tensor, rows: Tensor, name: str, strength: float
) -> tuple[float, float, float]:
    """Returns active units a row, the share of variance unexplained, and that of fitted entries."""
    options: dict[str, Any] = {"solver": "fista", "tolerance": 1e-4, "max_steps": 5000}
    coder = SparseCoder(atoms, penalty=name, strength=strength, **options)
    codes = coder.transform(rows)
    coder.set_params(debias=True)
    again = coder.inverse_transform(coder.transform(rows)) if name == "soft" else codes @ atoms
    return coder.report_.active, unexplained(rows, codes @ atoms), unexplained(rows, again)
