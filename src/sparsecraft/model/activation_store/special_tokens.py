"""Which tokens are no text: special ones, padding, the BOS at the start of a context."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor


def special_ids(tokenizer: Any) -> tuple[int, ...]:
    """Returns the ids of the tokenizer's special tokens, without the one for unknown words.

    An unknown word is a part of the text; where its token has another office too, as in GPT-2, it
    is special.
    """
    others = {
        getattr(tokenizer, f"{name}_token_id", None)
        for name in ("bos", "eos", "pad", "cls", "sep", "mask")
    }
    unknown = {getattr(tokenizer, "unk_token_id", None)} - others
    return tuple(sorted(set(tokenizer.all_special_ids) - unknown))


def special_mask(tokens: Tensor, special: Collection[int]) -> Tensor:
    """Returns bool like tokens: True on special ones."""
    return torch.isin(tokens, torch.tensor(sorted(special), dtype=tokens.dtype).to(tokens.device))


def begins_with_bos(tokenizer: Any, contexts: Tensor) -> bool | None:
    """Returns whether all contexts (contexts, tokens) begin so; None without a tokenizer."""
    if tokenizer is None:
        return None
    bos = getattr(tokenizer, "bos_token_id", None)
    return bos is not None and contexts.numel() > 0 and bool((contexts[:, 0] == bos).all())


def padding_token(tokenizer: Any, tokens: Tensor) -> tuple[int | None, str | None]:
    """Returns the token that stands for padding, or None and why there is none.

    Args:
        tokenizer: That made the tokens, or None.
        tokens: Whole numbers (contexts, tokens).
    """
    if tokenizer is None:
        return None, (
            "without a tokenizer it is not known which of the tokens are padding: none was left "
            "out (give tokenizer=, or batches= with an attention_mask)"
        )
    padding = getattr(tokenizer, "pad_token_id", None)
    if padding is None:
        return None, None
    names = ("bos", "eos", "unk", "cls", "sep", "mask")
    if padding not in {getattr(tokenizer, f"{name}_token_id", None) for name in names}:
        return int(padding), None
    if not bool((tokens[:, [0, -1]] == padding).any()):
        return None, None
    return None, (
        f"the tokenizer pads with token {padding}, which has another office too: padding is not "
        "told from text (give batches= with an attention_mask)"
    )
