"""A Llama of 16 million weights, more than a processor's cache holds, trained on Python source."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsecraft.lab.tasks.base import Batch, check_positive
from sparsecraft.lab.tasks.language import next_token_loss
from sparsecraft.lab.tasks.stdlib_lm import stdlib_texts
from sparsecraft.lab.tasks.trained_language import LanguageSettings, TrainedCausalTask
from sparsecraft.lab.tasks.training import Fit

SIZE = LanguageSettings(
    vocabulary=4096, context=256, hidden=640, intermediate=1792, layers=3, heads=10
)


class StdlibLlama(TrainedCausalTask):
    """The task of `stdlib-lm` for a model that is large enough to be slow.

    It is trained once, in bfloat16 products on float32 weights, about 50 minutes on one core of
    2026; a training that was stopped goes on where it was.

    Args:
        steps: Training steps of 2,048 tokens.
        files: Use only this many files; the default is all.
        seed: Of the training.
        size: Of the model.
    """

    resumes = True

    def __init__(
        self,
        steps: int = 2200,
        files: int | None = None,
        seed: int = 0,
        size: LanguageSettings = SIZE,
    ) -> None:
        check_positive(steps=steps)
        texts = stdlib_texts(files)
        count = len(texts.training) + len(texts.validation) + len(texts.test)
        super().__init__(
            name="stdlib-llama",
            about=(
                f"{count} source files of the Python standard library; whole files are held out: "
                f"{len(texts.validation)} for validation, {len(texts.test)} for test."
            ),
            texts=texts,
            size=size,
            schedule=Fit(steps=steps, batch_size=8, learning_rate=1.5e-3, seed=seed),
        )

    def training_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns the cross-entropy of the next token, its products in bfloat16."""
        with torch.autocast("cpu", torch.bfloat16):
            return next_token_loss(model, batch)
