"""Calibration batches from a text, cut by the model's own tokenizer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue

ROWS = 8
"""Windows in a batch."""
_PROBE = "a"
_MOST_CHARACTERS = 64  # of one token on average; more is never needed to fill the windows


def read_text(path: str | Path) -> str:
    """Returns the text of a UTF-8 file.

    Raises:
        InvalidValue: If it cannot be read as text.
    """
    source = Path(path).expanduser()
    try:
        return source.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidValue(
            f"{source} is not a UTF-8 text (byte {error.start}). Give plain text, not a model, "
            "an archive or another encoding."
        ) from error
    except OSError as error:
        raise InvalidValue(
            f"calibration text {source} cannot be read: {error.strerror}. Give a UTF-8 text file."
        ) from error


def tokenize_text(
    tokenizer: Any, text: str, *, window: int, max_tokens: int
) -> list[dict[str, Tensor]]:
    """Returns batches of full windows, so that no padding is seen.

    The text is tokenized as a whole and cut; every window carries the tokenizer's own special
    tokens, as the model saw them in training. What does not fill a window is left out.

    Args:
        tokenizer: A Hugging Face tokenizer.
        text: As long as possible, and like what the model will read.
        window: Tokens in a row, special ones included.
        max_tokens: At most this many tokens in all, in whole windows, but at least one window.

    Returns:
        Batches with `input_ids` and `attention_mask`, int64 (windows, window).

    Raises:
        InvalidValue: If the text does not fill one window; the message says how many characters
            would.
    """
    prefix, suffix = frame(tokenizer)
    room = window - len(prefix) - len(suffix)
    if room < 1 or max_tokens < window:
        raise InvalidValue(
            f"window={window}, max_tokens={max_tokens}: a window needs more than "
            f"{len(prefix) + len(suffix)} special tokens and at most max_tokens."
        )
    windows = max_tokens // window
    ids = bare_ids(tokenizer, text[: _MOST_CHARACTERS * room * windows])
    if len(ids) < room:
        raise InvalidValue(_too_short(text, len(ids), room))
    rows = [
        [*prefix, *ids[i * room : (i + 1) * room], *suffix]
        for i in range(min(windows, len(ids) // room))
    ]
    return [_batch(rows[i : i + ROWS]) for i in range(0, len(rows), ROWS)]


def frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Returns the special tokens that the tokenizer sets before and after a text."""
    bare = bare_ids(tokenizer, _PROBE)
    whole = list(tokenizer(_PROBE)["input_ids"])
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    return [], []


def bare_ids(tokenizer: Any, text: str) -> list[int]:
    """Returns the ids of a text of any length, without special tokens."""
    # verbose=False: that the whole text is longer than the model reads is no mistake here.
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _batch(rows: list[list[int]]) -> dict[str, Tensor]:
    ids = torch.tensor(rows, dtype=torch.int64)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _too_short(text: str, tokens: int, room: int) -> str:
    each = len(text) / tokens if tokens else 4.0
    return (
        f"the calibration text has {len(text)} characters ({tokens} tokens), too few for one "
        f"window of {room} tokens: give at least {math.ceil(each * room)} characters, better a "
        "hundred times as many, or a smaller --window."
    )
