"""What it means that two texts overlap, so that training text can be kept apart from tests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

SHINGLE = 8
"""Two texts that share this many words in a row overlap."""


def shingles(text: str, words: int = SHINGLE) -> set[tuple[str, ...]]:
    """Returns every run of this many words of the text, in lower case.

    Example:
        >>> sorted(shingles("To be or not", words=3))
        [('be', 'or', 'not'), ('to', 'be', 'or')]
    """
    tokens = text.lower().split()
    return {tuple(tokens[i : i + words]) for i in range(len(tokens) - words + 1)}


def apart(texts: Iterable[str], held_out: Sequence[str], shortest: int) -> Iterator[str]:
    """Yields the texts, each once, that share no passage with any held-out text.

    Args:
        texts: Candidates.
        held_out: Texts of validation and test.
        shortest: Candidates with fewer characters are left out.
    """
    forbidden: set[tuple[str, ...]] = set()
    for text in held_out:
        forbidden |= shingles(text)
    seen = set(held_out)
    for text in texts:
        if len(text) >= shortest and text not in seen:
            seen.add(text)
            if forbidden.isdisjoint(shingles(text)):
                yield text
