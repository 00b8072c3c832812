"""Perplexity of a causal language model on held-out text, and how far it is from another model.

The protocol is the one that pruning papers share: the parts of a text are joined by blank lines and
tokenised once as a whole; the tokens are cut into windows without overlap and the rest is dropped;
each window is scored on its own, its first token unpredicted, and all windows count alike. The
windows have the length of the model's context, but at most 2048 tokens, the length of the papers,
where the model reads more.

Reference:
    Zhang et al., 2023, arXiv 2310.08915, section 4.1; Frantar and Alistarh, 2023,
    arXiv 2301.00774, section 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sparsecraft.core.errors import InvalidValue, NonFinite
from sparsecraft.model.units import evaluating

SEPARATOR = "\n\n"
LONGEST_WINDOW = 2048
TOKENS_AT_ONCE = 4096
LOGITS_AT_ONCE = 2**26
"""At most a quarter of a gigabyte of float32 logits in one batch, unless one window has more."""
POSITIONS_AT_ONCE = 512
"""Tokens of a window whose logits are widened to float32 together."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class WindowScores:
    """What a model found of each window, so that two models can be compared window by window.

    Args:
        losses: float64 (windows,) mean negative log-likelihood of a window's tokens but the first,
            in nats.
        divergences: float64 (windows,) mean KL(dense || model) of the same tokens, in nats, where
            a dense model was given.
    """

    losses: np.ndarray
    divergences: np.ndarray | None = None

    @property
    def perplexity(self) -> float:
        """Exp of the mean over windows; infinite where that is beyond float64."""
        mean = float(self.losses.mean())
        return math.exp(mean) if mean < 700 else math.inf  # exp(710) is beyond float64

    @property
    def kl(self) -> float | None:
        """The mean divergence, or None where no dense model was given."""
        return None if self.divergences is None else float(self.divergences.mean())


def perplexity(
    model: nn.Module,
    token_ids: Tensor | Sequence[int],
    window: int | None = None,
    *,
    progress: Progress | None = None,
) -> float:
    """Returns the perplexity of a causal language model on a tokenised text.

    Args:
        model: Gives logits (windows, tokens, vocabulary) for `input_ids`, or has them as `.logits`.
        token_ids: (tokens,) the whole text; see `tokenize`.
        window: Tokens in a window; the model's context length by default, at most 2048.
        progress: Called with (windows done, windows in all).

    Raises:
        InvalidValue: If the text is shorter than one window, or a window than two tokens.
        NonFinite: If a loss is not a number.

    Example:
        >>> import torch
        >>> class Uniform(torch.nn.Module):
        ...     def forward(self, input_ids):
        ...         return torch.zeros(*input_ids.shape, 4)
        >>> round(perplexity(Uniform(), [0, 1, 2, 3, 0, 1], window=2), 4)
        4.0

    Reference:
        Zhang et al., 2023, arXiv 2310.08915, section 4.1.
    """
    length = context_length(model) if window is None else window
    found = score_windows(model, windows_of(token_ids, length), progress=progress)
    check_numbers(found.losses)
    return found.perplexity


def score_windows(
    model: nn.Module,
    windows: Tensor,
    *,
    dense: nn.Module | None = None,
    progress: Progress | None = None,
) -> WindowScores:
    """Returns the loss of every window and, beside a dense model, the divergence from it.

    No more than one batch of logits is held, whatever the number of windows.

    Args:
        model: Gives logits for `input_ids`.
        windows: int64 (windows, tokens), each scored without knowledge of the others.
        dense: The model to compare with; it is evaluated on the same batches.
        progress: Called with (windows done, windows in all).
    """
    losses: list[float] = []
    divergences: list[float] = []
    beside = nullcontext() if dense is None else evaluating(dense)
    with evaluating(model), beside, torch.inference_mode():
        for part in windows.split(_windows_at_once(model, windows.shape[1])):
            logits = logits_of(model, part)
            reference = None if dense is None else logits_of(dense, part)
            for row, ids in enumerate(part):
                losses.append(_loss(logits[row, :-1], ids[1:]))
                if reference is not None:
                    divergences.append(_divergence(reference[row, :-1], logits[row, :-1]))
            if progress:
                progress(len(losses), len(windows))
    return WindowScores(np.array(losses), np.array(divergences) if dense is not None else None)


def tokenize(tokenizer: Any, texts: str | Sequence[str]) -> Tensor:
    r"""Returns int64 (tokens,) ids of the texts joined by blank lines and tokenised once.

    Special tokens are those that the tokenizer sets round one text, as in the published protocol:
    at most one at either end of the whole.

    Args:
        tokenizer: A Hugging Face tokenizer.
        texts: One text, or its parts in order, such as the lines of a data set.
    """
    whole = texts if isinstance(texts, str) else SEPARATOR.join(texts)
    # verbose=False: that the whole is longer than the model reads is no mistake here.
    return torch.tensor(tokenizer(whole, verbose=False)["input_ids"], dtype=torch.long)


def windows_of(token_ids: Tensor | Sequence[int], window: int) -> Tensor:
    """Returns int64 (windows, window) windows without overlap; what fills no window is dropped.

    Raises:
        InvalidValue: If the window has fewer than two tokens, or the text fewer than one window.

    Example:
        >>> windows_of([5, 6, 7, 8, 9], 2).tolist()
        [[5, 6], [7, 8]]
    """
    ids = torch.as_tensor(token_ids, dtype=torch.long)
    if ids.dim() != 1:
        raise InvalidValue(
            f"token ids have shape {tuple(ids.shape)}; give those of the whole text, (tokens,)"
        )
    if window < 2:
        raise InvalidValue(
            f"window={window} is not allowed: the first token of a window is not predicted, so "
            "give at least 2"
        )
    if len(ids) < window:
        raise InvalidValue(
            f"the text has {len(ids)} tokens, fewer than one window of {window}: give a longer "
            "text, better a hundred windows, or a smaller window"
        )
    return cut(ids, window)


def cut(ids: Tensor | Sequence[int], window: int, limit: int | None = None) -> Tensor:
    """Returns (windows, window) windows of the ids, without overlap; the last part is dropped.

    Args:
        ids: (tokens,) in order; may be too few for one window.
        window: Tokens in a window.
        limit: At most this many windows, taken at even distances.
    """
    tokens = torch.as_tensor(ids, dtype=torch.long)
    count = len(tokens) // window
    windows = tokens[: count * window].view(count, window)
    if limit is None or count <= limit:
        return windows
    return windows[torch.linspace(0, count - 1, limit).round().long()]


def check_numbers(losses: np.ndarray) -> None:
    """Raises unless every loss is a number; an infinite one is.

    Raises:
        NonFinite: With how many windows are not.
    """
    bad = int(np.isnan(losses).sum())
    if bad:
        raise NonFinite(
            f"the loss of {bad} of {len(losses)} windows is not a number: the model is numerically "
            "broken. Check its weights with torch.isfinite."
        )


def context_length(model: nn.Module) -> int:
    """Returns how many tokens a window has by default: what the model reads, at most 2048.

    Raises:
        InvalidValue: If the model's config does not say; give a window then.
    """
    config = getattr(model, "config", None)
    config = getattr(config, "text_config", config)
    for key in ("max_position_embeddings", "n_positions"):
        if getattr(config, key, None):
            return min(int(getattr(config, key)), LONGEST_WINDOW)
    raise InvalidValue(
        f"the config of this {type(model).__name__} does not say how many tokens it reads; give "
        "the window"
    )


def _loss(logits: Tensor, ids: Tensor) -> float:
    """Returns the mean negative log-likelihood of (tokens,) ids under (tokens, vocabulary)."""
    total = 0.0
    parts = zip(logits.split(POSITIONS_AT_ONCE), ids.split(POSITIONS_AT_ONCE), strict=True)
    for part, wanted in parts:
        found = functional.cross_entropy(part.float(), wanted.to(part.device), reduction="none")
        total += float(found.double().sum())
    return total / len(ids)


def _divergence(dense: Tensor, logits: Tensor) -> float:
    """Returns the mean KL(dense || model) of (tokens, vocabulary) logits."""
    total = 0.0
    for one, other in zip(
        dense.split(POSITIONS_AT_ONCE), logits.split(POSITIONS_AT_ONCE), strict=True
    ):
        total += float(divergence(one, other.to(one.device)).double().sum())
    return total / len(dense)


def logits_of(model: nn.Module, ids: Tensor) -> Tensor:
    """Returns (windows, tokens, vocabulary) logits of ids that are moved to the model."""
    first = next(chain(model.parameters(), model.buffers()), None)
    output = model(input_ids=ids if first is None else ids.to(first.device))
    return output if isinstance(output, Tensor) else output.logits


def divergence(dense: Tensor, logits: Tensor) -> Tensor:
    """Returns (...) KL(dense || model) in nats of logits (..., vocabulary).

    Example:
        >>> import torch
        >>> float(divergence(torch.zeros(1, 2), torch.zeros(1, 2)))
        0.0
    """
    target = dense.float().log_softmax(-1)
    found = logits.float().log_softmax(-1)
    return functional.kl_div(found, target, log_target=True, reduction="none").sum(-1)


def _windows_at_once(model: nn.Module, window: int) -> int:
    vocabulary = getattr(getattr(model, "config", None), "vocab_size", None) or 1
    return max(1, min(TOKENS_AT_ONCE, LOGITS_AT_ONCE // vocabulary) // window)
