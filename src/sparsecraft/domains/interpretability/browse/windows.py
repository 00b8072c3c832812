"""The texts around the rows in which latents fire, with the activation of each token."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from sparsecraft.domains.interpretability.browse.survey import Progress, Survey, encoded
from sparsecraft.domains.interpretability.browse.texts import TokenText
from sparsecraft.model.activation_store import ActivationStore
from sparsecraft.model.sae import SparseAutoencoder

BEFORE, AFTER = 14, 9
KINDS = ("positive", "negative", "sampled")


@dataclass
class Vocabulary:
    """The texts of the tokens that a page shows, each once.

    Args:
        text: From a token id to its text.
    """

    text: TokenText
    texts: list[str] = field(default_factory=list)
    _numbers: dict[int, int] = field(default_factory=dict)

    def number(self, token: int) -> int:
        """Returns the place of a token's text in `texts`."""
        if token not in self._numbers:
            self._numbers[token] = len(self.texts)
            self.texts.append(self.text(token))
        return self._numbers[token]


def windows(
    sae: SparseAutoencoder,
    store: ActivationStore,
    found: Survey,
    latents: list[int],
    vocabulary: Vocabulary,
    progress: Progress | None = None,
) -> dict[int, dict[str, Any]]:
    """Returns for each latent its examples, mean and histogram, as plain values.

    An example is {"t": tokens, "a": activations, "p": place of its strongest token}.
    """
    details = {latent: _summary(found, latent) for latent in latents}
    wanted, texts = _wanted(found, latents), cast(Tensor, store.tokens)
    for done, (context, uses) in enumerate(wanted.items()):
        first, last = found.ranges[context]
        code = encoded(sae, store, first, last).dense()
        tokens = texts[context]
        for kind, latent, place, row in uses:
            example = _example(found, code[:, latent], tokens, first, row, vocabulary)
            details[latent][kind][place] = example
        if progress is not None:
            progress("writing examples", done + 1, len(wanted))
    return details


def _summary(found: Survey, latent: int) -> dict[str, Any]:
    fired = int(found.fired[latent])
    shown: dict[str, Any] = {
        "mean": round(float(found.sums[latent]) / max(1, fired), 4),
        "bars": found.histogram[latent].tolist(),
    }
    for kind in KINDS:
        shown[kind] = [None] * len(getattr(found, kind).of(latent))
    return shown


def _wanted(found: Survey, latents: list[int]) -> dict[int, list[tuple[str, int, int, int]]]:
    """Returns context -> what is shown of it, so that each context is encoded once."""
    wanted: dict[int, list[tuple[str, int, int, int]]] = defaultdict(list)
    for kind in KINDS:
        for latent in latents:
            for place, row in enumerate(getattr(found, kind).of(latent)):
                wanted[int(found.contexts[row])].append((kind, latent, place, row))
    return dict(sorted(wanted.items()))


def _example(
    found: Survey,
    values: Tensor,
    tokens: Tensor,
    first: int,
    row: int,
    vocabulary: Vocabulary,
) -> dict[str, Any]:
    """Returns the window around a row; tokens that were left out of the store have activation 0.

    Padding, which has no token, is not shown.
    """
    activations = torch.zeros(len(tokens))
    activations[found.positions[first : first + len(values)]] = values.float()
    real = (tokens >= 0).nonzero().flatten()
    peak = int((real == found.positions[row]).nonzero())
    shown = real[max(0, peak - BEFORE) : peak + AFTER + 1]
    return {
        "t": [vocabulary.number(token) for token in tokens[shown].tolist()],
        "a": [round(value, 3) for value in activations[shown].tolist()],
        "p": min(peak, BEFORE),
    }
