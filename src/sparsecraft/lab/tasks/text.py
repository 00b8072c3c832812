"""A user's own model on a user's own text: perplexity, or retrieval inside the text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue, MissingDependency
from sparsecraft.lab.measures.perplexity import LONGEST_WINDOW, tokenize
from sparsecraft.lab.tasks import cache, pretrained
from sparsecraft.lab.tasks.base import Task, check_positive
from sparsecraft.lab.tasks.embedding import RetrievalTask
from sparsecraft.lab.tasks.language import CausalTask, Part, cut, without
from sparsecraft.lab.tasks.passages import Queries, RetrievalCorpus, apart
from sparsecraft.lab.tasks.stdlib_docs import squeeze
from sparsecraft.lab.tasks.trained_language import PARTS, SplitTexts

CONTEXT = 512
FEWEST_WINDOWS = 2
FEWEST_PARAGRAPHS = 16
"""In each third of the text."""
PARAGRAPH_WORDS = 16
CHUNK_WORDS = 64
MOST_WINDOWS = 512
MOST_PARAGRAPHS = 3000


def text_task(
    model_dir: str | Path,
    text_path: str | Path,
    kind: Literal["auto", "embedding", "causal-lm"] = "auto",
) -> Task:
    """Returns the task that fits the model, on this text.

    Args:
        model_dir: A Hugging Face directory or hub id.
        text_path: A text file in UTF-8, or "hf:organisation/name" or
            "hf:organisation/name:configuration" for the train split of a hub data set.
        kind: "auto" asks the model's config.

    Raises:
        InvalidValue: If the kind is unknown, or the text too short.
    """
    if kind not in ("auto", "embedding", "causal-lm"):
        raise InvalidValue(f"kind={kind!r} is not one of 'auto', 'embedding', 'causal-lm'.")
    folder = pretrained.model_directory(model_dir)
    found = pretrained.model_kind(folder) if kind == "auto" else kind
    if found == "causal-lm":
        return CausalText(folder, text_path)
    return EmbeddingText(folder, text_path)


class PretrainedCausalTask(CausalTask):
    """A pretrained causal language model on held-out text.

    Args:
        name: The task's name.
        about: One sentence on the data.
        model_dir: A Hugging Face directory or hub id.
        texts: By part; those of a part are joined by blank lines and tokenised once.
        context: Tokens in a window; the model's own limit if that is lower, or if it is None, but
            then at most 2048.
        most_windows: Of the test part, taken at even distances, and half as many of validation;
            None scores them all, as the published protocol does.
    """

    def __init__(
        self,
        *,
        name: str,
        about: str,
        model_dir: str | Path,
        texts: SplitTexts,
        context: int | None,
        most_windows: int | None = MOST_WINDOWS,
    ) -> None:
        context = LONGEST_WINDOW if context is None else context
        check_positive(context=context)
        self.name = name
        self.model_dir = pretrained.model_directory(model_dir)
        self.context = min(context, pretrained.longest_input(self.model_dir))
        self._texts = texts
        self._most = most_windows
        contents = [getattr(texts, part) for part in PARTS]
        settings = {"task": name, "context": self.context, "most": most_windows, "joined": True}
        self.fingerprint = cache.fingerprint(
            settings, *contents, cache.directory_digest(self.model_dir)
        )
        counts = {part: len(windows) for part, windows in self.windows.items()}
        self.description = (
            f"{about} The model is scored on {counts['validation']} validation and "
            f"{counts['test']} test windows of {self.context} tokens without overlap; calibration "
            f"draws on {counts['training']} windows of other text."
        )

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the model directory."""
        return pretrained.load_tokenizer(self.model_dir)

    @cached_property
    def windows(self) -> dict[Part, Tensor]:
        """(windows, context) token ids by part."""
        half = None if self._most is None else self._most // 2
        test = without(self._cut("test", self._most))
        validation = without(self._cut("validation", half), test)
        training = without(self._cut("training", None), validation, test)
        if not len(training) or not len(validation):
            raise InvalidValue(
                f"The text for {self.name} repeats itself: its windows of {self.context} tokens "
                "are the same in all parts, so nothing is left to calibrate or choose on. Give a "
                "text that is less alike."
            )
        return {"training": training, "validation": validation, "test": test}

    def load_model(self) -> nn.Module:
        """Returns a fresh dense model."""
        return pretrained.load_model(self.model_dir, "causal-lm")

    def save_extras(self, directory: Path) -> None:
        """Writes the tokenizer."""
        self.tokenizer.save_pretrained(directory)

    def _cut(self, part: Part, limit: int | None) -> Tensor:
        texts: Sequence[str] = getattr(self._texts, part)
        ids = tokenize(self.tokenizer, texts)
        if len(ids) < FEWEST_WINDOWS * self.context:
            characters = sum(map(len, texts))
            each = max(1.0, characters / max(1, len(ids)))
            needed = int(FEWEST_WINDOWS * self.context * each) + 1
            raise InvalidValue(
                f"The {part} part of the text for {self.name} has {characters} characters; windows "
                f"of {self.context} tokens need about {needed} characters in each of the three "
                f"parts, {3 * needed} in all. Give a longer text or a smaller context."
            )
        return cut(ids, self.context, limit)


class CausalText(PretrainedCausalTask):
    """Perplexity of a causal language model on a text: the thirds are three parts.

    Args:
        model_dir: A Hugging Face directory or hub id.
        text: A text file in UTF-8, or "hf:name".
        context: Tokens in a window; the model's own limit if that is lower.
    """

    def __init__(self, model_dir: str | Path, text: str | Path, context: int = CONTEXT) -> None:
        content = read_text(text)
        third = len(content) // 3
        super().__init__(
            name="causal-text",
            about=(
                f"{len(content)} characters of {_title(text)}, in thirds: calibration, validation,"
                " test."
            ),
            model_dir=model_dir,
            texts=SplitTexts(
                (content[:third],), (content[third : 2 * third],), (content[2 * third :],)
            ),
            context=context,
        )


class EmbeddingText(RetrievalTask):
    """An encoder on a text: the first half of a paragraph searches for the second half.

    Args:
        model_dir: A Hugging Face encoder directory or hub id.
        text: A text file in UTF-8, or "hf:name".
        max_length: Texts are cut after this many tokens.
    """

    def __init__(self, model_dir: str | Path, text: str | Path, max_length: int = 64) -> None:
        folder = pretrained.model_directory(model_dir)
        content = read_text(text)
        corpus = halves_corpus(paragraphs(content))
        counts = [len(corpus.queries[split].texts) for split in ("validation", "test")]
        super().__init__(
            name="embedding-text",
            about=(
                f"The first half of a paragraph of {_title(text)} searches for the second half "
                f"among {len(corpus.documents)}; {counts[0]} validation and {counts[1]} test "
                f"queries and {len(corpus.training)} calibration texts come from separate thirds."
            ),
            model_dir=folder,
            corpus=corpus,
            max_length=max_length,
        )


def read_text(source: str | Path) -> str:
    """Returns the text of a UTF-8 file, or the rows of a hub data set one after another.

    Raises:
        InvalidValue: If there is no such file, it is not text, or it is empty.
    """
    if str(source).startswith("hf:"):
        return _read_dataset(str(source)[3:])
    path = Path(source).expanduser()
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidValue(f"{path} is not text in UTF-8 (byte {error.start}).") from error
    except OSError as error:
        raise InvalidValue(f"could not read the text {path}: {error.strerror}.") from error
    if not content.strip():
        raise InvalidValue(
            f"{path} is empty. A language model needs about {6 * CONTEXT * 4} characters, an "
            f"encoder {3 * FEWEST_PARAGRAPHS} paragraphs of {PARAGRAPH_WORDS} words."
        )
    return content


def paragraphs(content: str) -> list[str]:
    """Returns the paragraphs that are long enough, each once, in order.

    Where blank lines give too few, every 64 words make one.

    Raises:
        InvalidValue: If there are too few either way; the message says how many characters are
            needed.
    """
    found = _long_enough(re.split(r"\n\s*\n", content))
    if len(found) < 3 * FEWEST_PARAGRAPHS:
        words = content.split()
        starts = range(0, len(words), CHUNK_WORDS)
        found = _long_enough(" ".join(words[start : start + CHUNK_WORDS]) for start in starts)
    if len(found) < 3 * FEWEST_PARAGRAPHS:
        needed = 3 * FEWEST_PARAGRAPHS * CHUNK_WORDS * 6
        raise InvalidValue(
            f"The text has {len(content)} characters, which gives {len(found)} different "
            f"paragraphs; retrieval needs {3 * FEWEST_PARAGRAPHS}, about {needed} characters."
        )
    step = -(-len(found) // MOST_PARAGRAPHS)
    return found[::step]


def halves_corpus(found: Sequence[str]) -> RetrievalCorpus:
    """Returns the corpus of paragraphs in thirds: training, validation, test.

    Raises:
        InvalidValue: If the first third only repeats the others, so that none of it may be used.
    """
    third = len(found) // 3
    held_out = found[third:]
    halves = list(dict.fromkeys(_halves(text) for text in held_out))
    validation = range(len(halves) // 2)
    test = range(len(halves) // 2, len(halves))
    training = tuple(apart(found[:third], held_out, shortest=1))
    if not training:
        raise InvalidValue(
            f"The text repeats itself: each of the first {third} of its {len(found)} paragraphs "
            "shares a passage with the rest, so nothing is left to calibrate on. Give a text that "
            "is less alike."
        )
    return RetrievalCorpus(
        documents=tuple(second for _, second in halves),
        queries={
            "validation": Queries(tuple(halves[i][0] for i in validation), tuple(validation)),
            "test": Queries(tuple(halves[i][0] for i in test), tuple(test)),
        },
        training=training,
    )


def _long_enough(parts: Any) -> list[str]:
    squeezed = dict.fromkeys(map(squeeze, parts))
    return [text for text in squeezed if text.count(" ") >= PARAGRAPH_WORDS - 1]


def _halves(text: str) -> tuple[str, str]:
    words = text.split()
    middle = len(words) // 2
    return " ".join(words[:middle]), " ".join(words[middle:])


def _read_dataset(name: str) -> str:
    try:
        import datasets
    except ImportError as error:
        raise MissingDependency("datasets", "datasets", f"The text hf:{name}") from error
    path, _, config = name.partition(":")
    try:
        rows = datasets.load_dataset(path, config or None, split="train")
    except Exception as error:
        raise InvalidValue(f"could not load the data set {name!r}: {error}") from error
    if "text" not in rows.column_names:
        raise InvalidValue(
            f"The data set {name!r} has no column 'text'; its columns: "
            f"{', '.join(rows.column_names)}."
        )
    return "\n\n".join(rows["text"])


def _title(text: str | Path) -> str:
    return str(text) if str(text).startswith("hf:") else Path(text).name
