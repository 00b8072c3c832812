"""Which latent stands best for each known value of an attribute, and how alike it is to its code.

Both questions are Makelov et al.'s (2024, section 5): a value's best latent is the one with the
highest F1 for it, and its decoder row is held against the value's code in a supervised dictionary.
A signed latent counts by the pole that it shows on the rows with the value.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from sparsecraft.domains.interpretability.feature_scores import feature_f1, value_masks
from sparsecraft.domains.interpretability.supervised_dictionary import (
    Attributes,
    SupervisedDictionary,
)


@dataclass(frozen=True)
class ValueLatent:
    """A value's best latent.

    Args:
        attribute: Which attribute.
        value: Which of its values.
        latent: The latent with the highest F1 for it.
        f1: That F1.
        cosine: Of the latent's direction, with the sign of its mean amplitude on the rows with the
            value, and the value's supervised code; 0 where one of them is zero.
    """

    attribute: str
    value: Hashable
    latent: int
    f1: float
    cosine: float


def value_latents(
    code: Tensor, directions: Tensor, known: SupervisedDictionary, attributes: Attributes
) -> tuple[ValueLatent, ...]:
    """Returns the best latent of every value of a supervised dictionary's attributes.

    Args:
        code: (rows, latents), amplitudes.
        directions: (latents, d), what they multiply.
        known: Fitted on such rows.
        attributes: The values of every row.

    Raises:
        UnknownName: For a value that `known` has not seen.
        InvalidValue: If lengths differ, or a value of `known` is in no row.
    """
    found: list[ValueLatent] = []
    for name, index in known.indices(attributes, len(code)).items():
        masks = value_masks(index, len(known.values[name])).to(code.device)
        latents, f1 = feature_f1(code != 0, masks).best()
        pole = (code[:, latents] * masks).double().sum(0).sign()
        supervised = known.codes[name].double()
        chosen = pole[:, None] * directions[latents].double()
        cosine = F.cosine_similarity(chosen, supervised.to(chosen.device), dim=1)
        columns = (latents.tolist(), f1.tolist(), cosine.tolist())
        found += [
            ValueLatent(name, value, *rest)
            for value, *rest in zip(known.values[name], *columns, strict=True)
        ]
    return tuple(found)
