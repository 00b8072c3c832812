"""What a model says of a text, by which kind of answer it is judged, and how answers compare.

Language models predict the next token. Encoders predict nothing, so texts are compared by the
similarities of their embeddings. A masked language model has logits, too, but those of a token see
the tokens behind it: such a model is judged as an encoder. Which of the two a model is shows in an
experiment: later tokens are changed, and the predictions of earlier ones stay or do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.model.hook_points import hook_point

Kind = Literal["auto", "next token", "similarity"]
KINDS: tuple[Kind, ...] = ("auto", "next token", "similarity")
SHARPNESS = 20.0
"""What similarities, which are cosines, are multiplied with before the softmax."""
_ROUNDING = 1e-4
"""Change of predictions, relative to the largest, that may be rounding; in half precision more."""


@dataclass(frozen=True)
class Reader:
    """What is run on a text, and how its answers are judged.

    Args:
        module: The model, or the part of it below its head.
        kind: "next token" or "similarity".
        remark: What a reader of the figures must know, or None.
    """

    module: nn.Module
    kind: Kind
    remark: str | None = None


def reader_of(model: nn.Module, at: str, kind: Kind, tokens: Tensor) -> Reader:
    """Returns how a model is to be run and judged.

    Args:
        model: In evaluation mode.
        at: Hook point where activations will be replaced.
        kind: As asked for; "auto" is decided by what the model returns.
        tokens: int (contexts, length) token ids, -1 for padding.

    Raises:
        InvalidValue: If the model returns nothing that is known, or not what the kind needs.
    """
    if kind == "next token":
        return Reader(model, kind)
    output = answer(model, tokens[:1])
    remark = None
    if kind == "auto" and not isinstance(getattr(output, "last_hidden_state", None), Tensor):
        if not _sees_behind(model, output, tokens):
            return Reader(model, "next token")
        remark = (
            f"the predictions of {type(model).__name__} see the tokens behind them, so there is no "
            "next token to score: texts are compared by the similarities of their embeddings"
        )
    return Reader(_embedding_part(model, output, at, tokens), "similarity", remark)


def answer(module: nn.Module, tokens: Tensor) -> Any:
    """Returns what a module says of token ids (contexts, length), -1 for padding."""
    there = tokens >= 0
    ids = tokens.clamp_min(0).long().to(device_of(module))
    if bool(there.all()):
        return module(input_ids=ids) if hasattr(module, "config") else module(ids)
    return module(input_ids=ids, attention_mask=there.long().to(ids.device))


def device_of(module: nn.Module) -> torch.device:
    """Returns where a module reads its input: the device of its first weight."""
    return next((weight.device for weight in module.parameters()), torch.device("cpu"))


def log_predictions(output: Any, counts: Tensor) -> Tensor:
    """Returns (tokens, vocabulary) log probabilities of what follows the counted positions.

    Args:
        output: Of the model.
        counts: bool (contexts, length - 1).

    Raises:
        InvalidValue: If there are no logits for every token.
    """
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.dim() != 3:
        raise InvalidValue(
            "the model gives no logits for every token: for an encoder use kind='similarity'"
        )
    return logits[:, :-1][counts.to(logits.device)].float().log_softmax(-1)


def log_similarities(output: Any, tokens: Tensor) -> Tensor:
    """Returns (texts, texts - 1) log softmaxes of the similarities of mean-pooled embeddings.

    Args:
        output: Of the part that gives hidden states.
        tokens: (texts, length), -1 for padding.

    Raises:
        InvalidValue: If there is no hidden state for every token.
    """
    hidden = _hidden(output)
    if hidden is None:
        raise InvalidValue("the model gives no hidden state for every token to pool")
    there = (tokens >= 0).to(hidden)[:, :, None]
    embeddings = F.normalize((hidden * there).sum(1) / there.sum(1), dim=1).float()
    others = ~torch.eye(len(tokens), dtype=torch.bool, device=hidden.device)
    similarities = SHARPNESS * (embeddings @ embeddings.T)
    return similarities[others].view(len(tokens), -1).log_softmax(-1)


def _sees_behind(model: nn.Module, output: Any, tokens: Tensor) -> bool:
    """Returns whether the predictions of tokens change with those behind them.

    Args:
        model: The model.
        output: What it said of the first context.
        tokens: All contexts.
    """
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        raise InvalidValue(
            f"the model returns {type(output).__name__}, which has neither logits nor "
            "last_hidden_state: leave the model out, or wrap it in a module that returns one"
        )
    real = tokens[tokens >= 0]
    half = tokens.shape[1] // 2
    if logits.dim() != 3 or not half or real.min() == real.max():
        return False
    first = tokens[:1]
    other = torch.where(first == real.min(), real.max(), real.min())
    behind = torch.arange(tokens.shape[1], device=tokens.device) >= half
    changed = answer(model, torch.where(behind & (first >= 0), other, first))
    before, after = (each[0, :half].float() for each in (logits, _logits(changed)))
    rounding = max(_ROUNDING, 4 * torch.finfo(logits.dtype).eps)
    return float((before - after).abs().max()) > rounding * float(before.abs().max())


def _logits(output: Any) -> Tensor:
    found: Tensor = getattr(output, "logits", output)
    return found


def _hidden(output: Any) -> Tensor | None:
    hidden = getattr(output, "last_hidden_state", output)
    return hidden if isinstance(hidden, Tensor) and hidden.dim() == 3 else None


def _embedding_part(model: nn.Module, output: Any, at: str, tokens: Tensor) -> nn.Module:
    """Returns the model if its output has hidden states, else the part below its head."""
    if _hidden(output) is not None:
        return model
    base = getattr(model, "base_model", model)
    if base is model or _hidden(answer(base, tokens[:1])) is None:
        raise InvalidValue("the model gives no hidden state for every token to pool")
    if not any(hook_point(model, at).module is each for each in base.modules()):
        raise InvalidValue(
            f"{at} is in the head of {type(model).__name__}, and the similarities of texts are "
            "those below it: leave the model out"
        )
    return base
