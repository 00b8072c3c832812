"""How well latents stand for what is known of rows, beside the same rows with labels shuffled.

The third question of Makelov et al. (2024): F1 of latents for the values of an attribute, for
unions of values and for conjunctions of two attributes' values, and how alike a value's best
latent is to its supervised code. The codes themselves reach 1 by construction, in F1 for values and
in cosines. Shuffled labels are the floor: a latent that is often active, or a union of many values,
has a high F1 for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecraft.core import seeds
from sparsecraft.domains.interpretability.feature_scores import (
    conjunction_f1,
    feature_f1,
    union_f1,
    value_masks,
)
from sparsecraft.domains.interpretability.supervised_dictionary import (
    Attributes,
    SupervisedDictionary,
)
from sparsecraft.domains.interpretability.value_latents import value_latents

CLEAR = 0.5
"""The F1 from which on a latent counts as standing for something."""
SHUFFLED = "labels shuffled"
LEAST = 5
"""Rows in which a conjunction must hold: of fewer, a latent that hardly ever fires has it all."""


@dataclass(frozen=True)
class LabelScores:
    """Figures by name, each with its floor, and what was left out.

    Args:
        figures: Name to value.
        notes: What was not scored.
    """

    figures: dict[str, float]
    notes: tuple[str, ...]


def label_scores(
    code: Tensor,
    directions: Tensor,
    known: SupervisedDictionary,
    attributes: Attributes,
    name: str,
    *,
    max_group: int = 10,
    max_conjunctions: int = 1000,
    seed: int = 0,
) -> LabelScores:
    """Returns how well latents stand for the values of an attribute, and for chance.

    Args:
        code: (rows, latents), amplitudes.
        directions: (latents, d), what they multiply.
        known: Fitted on such rows.
        attributes: The values of every row; conjunctions are of all of them.
        name: The attribute whose values, unions and codes are scored.
        max_group: Values joined in a union at most.
        max_conjunctions: Conjunctions scored at most, the most frequent ones.
        seed: Of the shuffled labels.
    """
    draw = seeds.generator(seed, "label scores")
    others = code[torch.randperm(len(code), generator=draw)]
    figures: dict[str, float] = {}
    notes: tuple[str, ...] = ()
    index = known.indices(attributes, len(code))
    for label, rows in (("", code), (f", {SHUFFLED}", others)):
        masks = value_masks(index[name], len(known.values[name]))
        single, union = feature_f1(rows != 0, masks), union_f1(rows != 0, masks, max_group)
        best = value_latents(rows, directions, known, attributes)
        cosines = [each.cosine for each in best if each.attribute == name]
        found = {
            "best F1 of a value, mean": float(single.best()[1].mean()),
            f"latents with F1 of at least {CLEAR}": single.share(CLEAR),
            f"latents with union F1 of at least {CLEAR}": _share(union.f1),
            "cosine of a value's best latent and its code, mean": sum(cosines) / len(cosines),
        }
        if len(index) > 1:
            joined = conjunction_f1(rows != 0, index, most=max_conjunctions, least=LEAST)
            if joined.conjunctions:
                found[f"latents with conjunction F1 of at least {CLEAR}"] = _share(joined.f1)
            if joined.left_out:
                notes = (
                    f"{joined.left_out} conjunctions of two values were not scored: they hold in "
                    f"fewer than {LEAST} rows, or go beyond the {max_conjunctions} most frequent",
                )
        figures |= {f"{key}{label}": value for key, value in found.items()}
    return LabelScores(figures, notes)


def _share(f1: Tensor) -> float:
    return float((f1 >= CLEAR).double().mean())
