"""What a faster form of a model loses: perplexity and KL of a decoder, cosine of an encoder.

The form is compared with the dense model on the same windows of text, window by window, so that the
interval is that of the difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sparsecraft.core.errors import InvalidValue
from sparsecraft.lab.evidence import paired
from sparsecraft.lab.evidence.paired import paired_bootstrap
from sparsecraft.lab.measures.perplexity import check_numbers, score_windows
from sparsecraft.model.units import evaluating

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How far a form is from dense on the same text.

    Args:
        metric: "perplexity", lower is better, or "cosine to dense", 1 is the best.
        dense: The metric of the dense model.
        here: That of the form.
        change: Relative change of the perplexity, or the cosine's distance to 1; above 0 is worse.
        low: Lower end of its 95 % interval, None where one window says nothing of the spread.
        high: Upper end.
        kl: Mean KL(dense || form) of the next token in nats, for a decoder.
        windows: How many windows were scored.
        window: Tokens in each.
        about: Which text, in words.
    """

    metric: str
    dense: float
    here: float
    change: float
    low: float | None
    high: float | None
    kl: float | None
    windows: int
    window: int
    about: str


def decoder_quality(
    dense: nn.Module,
    form: nn.Module,
    windows: Tensor,
    about: str,
    progress: Progress | None = None,
) -> Quality:
    """Returns how the form's perplexity differs from that of dense, and its divergence from it.

    Args:
        dense: The reference.
        form: What is judged; see `as_decoded` for a packed model.
        windows: int64 (windows, tokens) of held-out text.
        about: Which text, in words.
        progress: Called with (windows done, windows in all).

    Raises:
        NonFinite: If a loss is not a number.
    """
    reference = score_windows(dense, windows)
    found = score_windows(form, windows, dense=dense, progress=progress)
    check_numbers(reference.losses)
    check_numbers(found.losses)
    change = paired_bootstrap(
        found.losses, reference.losses, statistic=paired.perplexity, combine=_relative
    )
    single = len(windows) == 1
    return Quality(
        metric="perplexity",
        dense=reference.perplexity,
        here=found.perplexity,
        change=change.estimate,
        low=None if single else change.low,
        high=None if single else change.high,
        kl=found.kl,
        windows=len(windows),
        window=windows.shape[1],
        about=about,
    )


def encoder_quality(
    dense: nn.Module, form: nn.Module, batches: list[dict[str, Tensor]], about: str
) -> Quality:
    """Returns how far mean-pooled outputs of the form are from those of dense.

    Args:
        dense: The reference.
        form: What is judged.
        batches: Inputs of whole windows.
        about: Which text, in words.
    """
    cosines: list[float] = []
    with evaluating(dense), evaluating(form), torch.inference_mode():
        for batch in batches:
            pair = (_pooled(dense, batch), _pooled(form, batch))
            cosines += functional.cosine_similarity(*pair).double().tolist()
    distances = 1 - np.array(cosines)
    interval = paired_bootstrap(distances, np.zeros_like(distances))
    single = len(distances) == 1
    return Quality(
        metric="cosine to dense",
        dense=1.0,
        here=float(np.mean(cosines)),
        change=interval.estimate,
        low=None if single else interval.low,
        high=None if single else interval.high,
        kl=None,
        windows=len(cosines),
        window=next(iter(batches[0].values())).shape[1],
        about=about,
    )


def _pooled(model: Any, batch: dict[str, Tensor]) -> Tensor:
    output = model(**batch)
    hidden = getattr(output, "last_hidden_state", None)
    if hidden is None:
        raise InvalidValue(
            f"a {type(model).__name__} gives no token vectors to compare; leave --text out, or "
            "measure it on its task with `sparsecraft compare`"
        )
    return hidden.float().mean(1)


def _relative(here: float, dense: float) -> float:
    return here / dense - 1
