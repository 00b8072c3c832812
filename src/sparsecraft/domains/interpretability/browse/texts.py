"""Tokens as people read them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

TokenText = Callable[[int], str]

_MARKS = ("Ġ", "▁")


def token_text(tokenizer: Any) -> TokenText:
    """Returns a function from a token id to its text, blanks included.

    Args:
        tokenizer: A Hugging Face tokenizer; or None for models that read bytes.
    """
    if tokenizer is None:
        return lambda number: bytes([number % 256]).decode("latin-1")
    # A vocabulary of source code has "##" too, as a comment sign.
    words = list(tokenizer.get_vocab())
    bytewise = any(token.startswith("Ġ") for token in words)
    pieces = any(t.startswith("##") for t in words) and not any(t[:1] in _MARKS for t in words)

    def text(number: int) -> str:
        token = str(tokenizer.convert_ids_to_tokens(int(number)))
        if token in tokenizer.all_special_tokens:
            return token
        if pieces:
            return token[2:] if token.startswith("##") else f" {token}"
        if bytewise:
            return str(tokenizer.convert_tokens_to_string([token]))
        return _plain(token)

    return text


def _plain(token: str) -> str:
    r"""Returns a token of sentencepiece with its marks as what they stand for.

    Example:
        >>> _plain("▁hello"), _plain("<0x0A>")
        (' hello', '\n')
    """
    if token.startswith("<0x") and token.endswith(">") and len(token) == 6:
        return bytes([int(token[3:5], 16)]).decode("latin-1")
    return token.replace("▁", " ")
