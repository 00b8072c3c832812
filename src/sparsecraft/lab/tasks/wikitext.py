"""WikiText-2 from files in SPARSECRAFT_DATA."""

from __future__ import annotations

import re
from pathlib import Path

from sparsecraft.lab.tasks import cache
from sparsecraft.lab.tasks.base import Task, check_positive
from sparsecraft.lab.tasks.text import PretrainedCausalTask
from sparsecraft.lab.tasks.trained_language import (
    LanguageSettings,
    SplitTexts,
    TrainedCausalTask,
)
from sparsecraft.lab.tasks.training import Fit

NAME = "wikitext2-lm"
ABOUT = (
    "WikiText-2 in its word-level form (spaces around punctuation, <unk> for rare words), so not "
    "comparable with perplexities on raw text; training and validation are different articles of "
    "its validation file, test is its test file."
)
HEADING = re.compile(r"^ = [^=].* = $", re.MULTILINE)


def wikitext2(
    model_dir: str | Path | None = None,
    steps: int = 1500,
    context: int | None = None,
    seed: int = 0,
) -> Task:
    """Returns the task of a pretrained model on WikiText-2, or of a small one trained on it.

    Args:
        model_dir: A causal language model; without one, a small Llama is trained here.
        steps: Of that training.
        context: Tokens in a window of a given model; what it reads by default, at most 2048.
        seed: Of that training.
    """
    check_positive(steps=steps)
    folder = cache.data_directory("wikitext2", f"The task {NAME}")
    if model_dir is not None:
        return PretrainedCausalTask(
            name=NAME,
            about=ABOUT,
            model_dir=model_dir,
            texts=protocol_texts(folder),
            context=context,
            most_windows=None,
        )
    return TrainedCausalTask(
        name=NAME,
        about=ABOUT,
        texts=wikitext2_texts(folder),
        size=LanguageSettings(),
        schedule=Fit(steps=steps, batch_size=8, learning_rate=3e-3, seed=seed),
    )


def wikitext2_texts(folder: Path) -> SplitTexts:
    """Returns the articles: one in five of valid.txt is validation, the others training."""
    articles = split_articles((folder / "valid.txt").read_text(encoding="utf-8"))
    return SplitTexts(
        training=tuple(text for index, text in enumerate(articles) if index % 5),
        validation=tuple(articles[::5]),
        test=tuple(split_articles((folder / "test.txt").read_text(encoding="utf-8"))),
    )


def protocol_texts(folder: Path) -> SplitTexts:
    """Returns the same parts as the rows that the published protocol joins; test is the file."""
    texts = wikitext2_texts(folder)
    return SplitTexts(
        training=rows("".join(texts.training)),
        validation=rows("".join(texts.validation)),
        test=rows((folder / "test.txt").read_text(encoding="utf-8")),
    )


def rows(text: str) -> tuple[str, ...]:
    r"""Returns the lines with their ends, those without words empty, as the data set has them.

    Example:
        >>> rows(" \n = One = \n a \n")
        ('', ' = One = \n', ' a \n')
    """
    return tuple(line if line.strip() else "" for line in re.findall(r".*\n|.+$", text))


def split_articles(text: str) -> list[str]:
    r"""Returns the articles of a WikiText file, each with its heading.

    Example:
        >>> split_articles(" = One = \n a \n = = Part = = \n b \n = Two = \n c \n")
        [' = One = \n a \n = = Part = = \n b \n', ' = Two = \n c \n']
    """
    starts = [match.start() for match in HEADING.finditer(text)]
    return [text[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]
