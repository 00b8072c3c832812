"""A small Llama trained on the source text of the running Python's standard library."""

from __future__ import annotations

from sparsecraft.core.errors import InvalidValue
from sparsecraft.lab.tasks.base import check_positive
from sparsecraft.lab.tasks.stdlib_docs import module_name, order, read_source, source_files
from sparsecraft.lab.tasks.trained_language import (
    LanguageSettings,
    SplitTexts,
    TrainedCausalTask,
)
from sparsecraft.lab.tasks.training import Fit

FEWEST_FILES = 20


class StdlibLanguageModel(TrainedCausalTask):
    """Next-token prediction on Python source files that the model has not seen.

    Args:
        steps: Training steps; the default takes about two minutes on two cores.
        files: Use only this many files; the default is all.
        seed: Of the training.
    """

    def __init__(self, steps: int = 1500, files: int | None = None, seed: int = 0) -> None:
        check_positive(steps=steps)
        texts = stdlib_texts(files)
        count = len(texts.training) + len(texts.validation) + len(texts.test)
        super().__init__(
            name="stdlib-lm",
            about=(
                f"{count} source files of the Python standard library; whole files are held out: "
                f"{len(texts.validation)} for validation, {len(texts.test)} for test."
            ),
            texts=texts,
            size=LanguageSettings(),
            schedule=Fit(steps=steps, batch_size=8, learning_rate=3e-3, seed=seed),
        )


def stdlib_texts(files: int | None = None) -> SplitTexts:
    """Returns the library's files: a sixteenth for validation, an eighth for test.

    Raises:
        InvalidValue: If too few files are asked for to fill the three parts.
    """
    if files is not None and files < FEWEST_FILES:
        raise InvalidValue(f"files={files} is too few to split; use at least {FEWEST_FILES}.")
    paths = sorted(source_files(), key=lambda path: order(module_name(path)))[:files]
    texts = tuple(dict.fromkeys(filter(None, map(read_source, paths))))
    test, validation = len(texts) // 8, max(1, len(texts) // 16)
    return SplitTexts(
        training=texts[test + validation :],
        validation=texts[test : test + validation],
        test=texts[:test],
    )
