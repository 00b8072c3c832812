"""Retrieval corpora, and what it means that a text overlaps with held-out text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from sparsecraft.lab.tasks import cache
from sparsecraft.lab.tasks.base import SPLITS, Split

SHINGLE = 8
"""Two texts that share this many words in a row overlap."""


@dataclass(frozen=True)
class Queries:
    """The queries of one split.

    Args:
        texts: The queries.
        relevant: For each query, the index of the document that it should find.
    """

    texts: tuple[str, ...]
    relevant: tuple[int, ...]


@dataclass(frozen=True)
class RetrievalCorpus:
    """One index of documents, the queries of both splits, and other text to train on.

    Args:
        documents: The index that every query searches.
        queries: By split.
        training: Texts that share no passage with documents and queries.
    """

    documents: tuple[str, ...]
    queries: dict[Split, Queries]
    training: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """A hash of all the text."""
        texts = [self.queries[split].texts for split in SPLITS]
        relevant = [self.queries[split].relevant for split in SPLITS]
        return cache.fingerprint(relevant, self.documents, *texts, self.training)


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
