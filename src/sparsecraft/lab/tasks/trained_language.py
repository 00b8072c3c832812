"""A small Llama trained here, once, on a text of ours: tokenizer, windows and weights cached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.lab.tasks import cache, pretrained
from sparsecraft.lab.tasks.base import Batch
from sparsecraft.lab.tasks.language import (
    CausalTask,
    Part,
    cut,
    encode,
    next_token_loss,
    window_batches,
    without,
)
from sparsecraft.lab.tasks.training import Fit, fit, seeded
from sparsecraft.model.checkpoints import quiet

END = "<|end|>"
PARTS: tuple[Part, Part, Part] = ("training", "validation", "test")


@dataclass(frozen=True)
class SplitTexts:
    """The texts of the three parts, for example files.

    Args:
        training: Also the text of the tokenizer.
        validation: Held out.
        test: Held out.
    """

    training: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LanguageSettings:
    """The size of the model and of the evaluation.

    Args:
        vocabulary: Entries of the byte-level BPE.
        context: Tokens in a window.
        hidden: Width of the model.
        intermediate: Width of the gated feed-forward layers.
        layers: Blocks.
        heads: Attention heads; half as many keys and values.
        validation_windows: At most.
        test_windows: At most.
    """

    vocabulary: int = 1024
    context: int = 128
    hidden: int = 160
    intermediate: int = 448
    layers: int = 4
    heads: int = 4
    validation_windows: int = 256
    test_windows: int = 512


class TrainedCausalTask(CausalTask):
    """A Llama trained on the task's own text when it is first asked for.

    Args:
        name: The task's name.
        about: A sentence on the data.
        texts: By part.
        size: Of the model and the evaluation.
        schedule: Of the training.
    """

    resumes = False
    """Whether a stopped training of the model goes on where it was; worth its files when long."""

    def __init__(
        self,
        *,
        name: str,
        about: str,
        texts: SplitTexts,
        size: LanguageSettings,
        schedule: Fit,
    ) -> None:
        self.name = name
        self.size = size
        self.schedule = schedule
        self._texts = texts
        contents = [getattr(texts, part) for part in PARTS]
        self._data = cache.fingerprint({"size": asdict(size)}, *contents)
        self.fingerprint = cache.fingerprint({"data": self._data, "fit": asdict(schedule)}, name)
        counts = {part: len(windows) for part, windows in self.windows.items()}
        self.description = (
            f"{about} A Llama of {size.layers} layers, trained here in {schedule.steps} steps, is "
            f"scored on {counts['validation']} validation and {counts['test']} test windows of "
            f"{size.context} byte-pair tokens (vocabulary {size.vocabulary}); the "
            f"{counts['training']} training windows come from other parts of the text."
        )

    @cached_property
    def tokenizer(self) -> Any:
        """The byte-level BPE of the training text."""
        return pretrained.load_tokenizer(self._data_folder)

    @cached_property
    def windows(self) -> dict[Part, Tensor]:
        """(windows, context) token ids by part."""
        with np.load(self._data_folder / "windows.npz") as stored:
            return {part: torch.from_numpy(stored[part].astype(np.int64)) for part in PARTS}

    @cached_property
    def model_dir(self) -> Path:
        """The folder of the trained model; trains it where it is not cached."""
        return cache.cached(f"{self.name}-model-{self.fingerprint}", self._train)

    def load_model(self) -> nn.Module:
        """Returns a fresh dense model."""
        return pretrained.load_model(self.model_dir, "causal-lm")

    def save_extras(self, directory: Path) -> None:
        """Writes the tokenizer."""
        self.tokenizer.save_pretrained(directory)

    def training_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns the loss by which the dense model is trained."""
        return next_token_loss(model, batch)

    @cached_property
    def _data_folder(self) -> Path:
        return cache.cached(f"{self.name}-data-{self._data}", self._tokenise)

    def _tokenise(self, folder: Path) -> None:
        tokenizer = train_tokenizer(self._texts.training, self.size.vocabulary)
        end = tokenizer.convert_tokens_to_ids(END)
        ids = {part: encode(tokenizer, list(getattr(self._texts, part)), end) for part in PARTS}
        context, size = self.size.context, self.size
        test = without(cut(ids["test"], context, size.test_windows))
        validation = without(cut(ids["validation"], context, size.validation_windows), test)
        training = without(cut(ids["training"], context), validation, test)
        windows: dict[Part, Tensor] = {
            "training": training,
            "validation": validation,
            "test": test,
        }
        for part, rows in windows.items():
            if len(rows) < 2:
                raise InvalidValue(
                    f"{self.name}: the {part} text gives {len(rows)} windows of {context} tokens; "
                    f"it needs at least {8 * context} characters."
                )
        tokenizer.save_pretrained(folder)
        arrays = {part: rows.numpy().astype(np.uint16) for part, rows in windows.items()}
        np.savez(folder / "windows.npz", allow_pickle=False, **arrays)

    def _train(self, folder: Path) -> None:
        schedule = self.schedule
        batches = window_batches(self.windows["training"], schedule.batch_size, schedule.seed)
        model = seeded(lambda: build_llama(self.size), schedule.seed)
        progress = cache.cache_directory() / f"{self.name}-training-{self.fingerprint}.pt"
        where = progress if self.resumes else None
        fit(model, batches, self.training_loss, schedule, self.name, where)
        with quiet():
            model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        progress.unlink(missing_ok=True)


def build_llama(size: LanguageSettings) -> Any:
    """Returns an untrained Llama with grouped-query attention and tied embeddings."""
    transformers = pretrained.transformers_library("Training a language model")
    config = transformers.LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=max(1, size.heads // 2),
        max_position_embeddings=size.context,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.LlamaForCausalLM(config)


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> Any:
    """Returns a byte-level BPE tokenizer; `END` is its token 0."""
    transformers = pretrained.transformers_library("Training a tokenizer")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, bos_token=END, pad_token=END
    )
