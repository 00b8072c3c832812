"""A pretrained Llama of 260 thousand weights that tells children's stories."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsecraft.core.seeds import generator
from sparsecraft.lab.tasks import cache, pretrained
from sparsecraft.lab.tasks.base import check_positive
from sparsecraft.lab.tasks.language import CausalTask, Part, without
from sparsecraft.lab.tasks.llama2c import BOS, convert_stories260k

__all__ = ["Stories260k", "convert_stories260k", "sample"]

MODEL_FILE, TOKENIZER_FILE = "stories260K.bin", "tok512.bin"


class Stories260k(CausalTask):
    """A pretrained Llama scored on stories that it told itself, and by its divergence from dense.

    Args:
        context: Tokens in a window, at most 512.
        training_windows: Windows of sampled text for calibration and training.
        validation_windows: Likewise, from another random stream.
        test_windows: Likewise.
    """

    name = "stories260k"
    measures_kl = True

    def __init__(
        self,
        context: int = 256,
        training_windows: int = 512,
        validation_windows: int = 128,
        test_windows: int = 256,
    ) -> None:
        check_positive(
            context=context,
            training_windows=training_windows,
            validation_windows=validation_windows,
            test_windows=test_windows,
        )
        self._source = cache.data_directory("stories260k", "The task stories260k")
        self.context = context
        self._counts: dict[Part, int] = {
            "training": training_windows,
            "validation": validation_windows,
            "test": test_windows,
        }
        files = [(self._source / file).read_bytes() for file in (MODEL_FILE, TOKENIZER_FILE)]
        self._weights = cache.fingerprint({"format": 1}, *files)
        settings = {"context": context, "windows": self._counts}
        self.fingerprint = cache.fingerprint(settings, self._weights)
        self.description = (
            "The pretrained 260K-parameter TinyStories Llama, scored on text that the dense model "
            f"itself sampled at temperature 1, in windows of {context} tokens, so its perplexity "
            f"is relative to its own distribution. {validation_windows} validation, {test_windows} "
            f"test and {training_windows} training windows come from separate random streams."
        )

    @cached_property
    def model_dir(self) -> Path:
        """The converted Hugging Face folder."""

        def build(folder: Path) -> None:
            convert_stories260k(self._source / MODEL_FILE, self._source / TOKENIZER_FILE, folder)

        return cache.cached(f"stories260k-{self._weights}", build)

    @cached_property
    def tokenizer(self) -> Any:
        """The model's own tokenizer of 512 pieces."""
        return pretrained.load_tokenizer(self.model_dir)

    @cached_property
    def windows(self) -> dict[Part, Tensor]:
        """(windows, context) sampled token ids by part."""

        def build(folder: Path) -> None:
            model = self.load_model()
            drawn = {
                part: sample(model, count, self.context, generator(0, "stories", part)).numpy()
                for part, count in self._counts.items()
            }
            np.savez(folder / "windows.npz", allow_pickle=False, **drawn)

        folder = cache.cached(f"stories260k-windows-{self.fingerprint}", build)
        with np.load(folder / "windows.npz") as stored:
            drawn = {part: torch.from_numpy(stored[part]) for part in self._counts}
        test = without(drawn["test"])
        validation = without(drawn["validation"], test)
        training = without(drawn["training"], validation, test)
        return {"training": training, "validation": validation, "test": test}

    def load_model(self) -> nn.Module:
        """Returns a fresh dense model."""
        return pretrained.load_model(self.model_dir, "causal-lm")

    def save_extras(self, directory: Path) -> None:
        """Writes the tokenizer."""
        self.tokenizer.save_pretrained(directory)


@torch.inference_mode()
def sample(model: Any, count: int, length: int, draw: torch.Generator) -> Tensor:
    """Returns (count, length) token ids sampled at temperature 1 from the start token on.

    A story that ends is followed by the next one, as in the model's training text.

    Args:
        model: A Hugging Face causal language model.
        count: Sequences.
        length: Tokens in each, the start token included.
        draw: The random stream.
    """
    ids = torch.full((count, 1), BOS)
    state = None
    while ids.shape[1] < length:
        output = model(input_ids=ids[:, -1:], past_key_values=state, use_cache=True)
        state = output.past_key_values
        chances = output.logits[:, -1].float().softmax(-1)
        ids = torch.cat([ids, torch.multinomial(chances, 1, generator=draw)], dim=1)
    return ids
