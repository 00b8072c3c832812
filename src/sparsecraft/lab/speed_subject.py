"""The model that `speed` looks at: loaded, told apart, and given its inputs and texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.seeds import generator
from sparsecraft.lab.decoding import check_fits
from sparsecraft.lab.measures.perplexity import context_length, cut, tokenize, windows_of
from sparsecraft.lab.speed_forms import without_gates
from sparsecraft.lab.speed_report import SpeedSettings
from sparsecraft.lab.tasks.pretrained import load_tokenizer
from sparsecraft.model.calibration_text import read_text, tokenize_text
from sparsecraft.model.checkpoints import load, read_settings
from sparsecraft.model.gate_hooks import installed

DTYPES = ("float32", "bfloat16")
ENCODER_TOKENS = 64
"""Tokens of each text that an encoder is timed on."""
TEXTS_AT_ONCE = 8


class Subject:
    """A model with what it is timed and judged on; everything is checked when it is made.

    Args:
        directory: A model directory.
        settings: What is measured.

    Raises:
        InvalidValue: For settings that do not fit the model.
        CheckpointError: If a directory cannot be read.
    """

    def __init__(self, directory: Path, settings: SpeedSettings) -> None:
        self.directory, self.settings = directory, settings
        self.notes: list[str] = []
        self.model: Any = _loaded(directory, settings.dtype, self.notes)
        self.decoder = _is_decoder(self.model)
        self.tokenizer = self._tokenizer()
        self.prompt = self._prompt()
        self.text = None if settings.text is None else read_text(settings.text)
        self.whole: Any = without_gates(self.model)
        self.dense = self.whole if settings.dense is None else self._original(settings.dense)
        self.windows = self._windows() if self.decoder and self.text is not None else None

    @property
    def about(self) -> str:
        """Which text quality is judged by."""
        return f"{Path(str(self.settings.text)).name}, held out"

    @property
    def rows(self) -> tuple[int, ...]:
        """Rows of a linear layer's input for each batch size."""
        each = 1 if self.decoder else self.length
        return tuple(size * each for size in self.settings.batch_sizes)

    @property
    def length(self) -> int:
        """Tokens, or patches, of each text or image that an encoder is timed on."""
        config = self.model.config
        if self._reads_pixels:
            return max(1, (config.image_size // getattr(config, "patch_size", 1)) ** 2)
        return min(ENCODER_TOKENS, context_length(self.model))

    @property
    def example(self) -> dict[str, Tensor] | None:
        """What gates and errors are judged by when packing: held-out text, else the prompt."""
        if self.windows is not None:
            return {"input_ids": self.windows[:1]}
        return None if self.prompt is None else {"input_ids": self.prompt[None]}

    def inputs(self, size: int) -> dict[str, Tensor]:
        """Returns what a forward pass of this batch size is timed on."""
        config = self.model.config
        draws = generator(0, "speed", size)
        if self._reads_pixels:
            shape = (size, config.num_channels, config.image_size, config.image_size)
            return {"pixel_values": torch.randn(shape, generator=draws).to(self.model.dtype)}
        tokens = 1 if self.decoder else self.length
        return {"input_ids": torch.randint(config.vocab_size, (size, tokens), generator=draws)}

    def encoder_batches(self) -> list[dict[str, Tensor]]:
        """Returns the text in windows, for an encoder."""
        window = self.settings.window or self.length
        most = self.settings.most_windows * window
        batches = tokenize_text(self.tokenizer, self.text or "", window=window, max_tokens=most)
        return [
            {name: tensor[i : i + TEXTS_AT_ONCE] for name, tensor in batch.items()}
            for batch in batches
            for i in range(0, len(batch["input_ids"]), TEXTS_AT_ONCE)
        ]

    def decode(self, ids: Tensor) -> str:
        """Returns the text of ids up to the first end token."""
        end = getattr(self.tokenizer, "eos_token_id", None)
        whole = ids.tolist()
        stop = whole.index(end) if end in whole else len(whole)
        return self.tokenizer.decode(whole[:stop], skip_special_tokens=True)

    def origin(self) -> str:
        """Returns how the model was made sparse, in words."""
        pruning = read_settings(self.directory).get("pruning") or {}
        parts = []
        if pruning:
            method = (pruning.get("method") or {}).get("method", "an unnamed method")
            share = pruning.get("sparsity")
            zeros = "" if share is None else f" to {share:.1%} zeros"
            parts.append(f"pruned by {method}{zeros}")
        gates = list(installed(self.model).values())
        if gates:
            method = gates[0].origin.method.get("method", "an unnamed method")
            asked = sum(gate.asked for gate in gates) / len(gates)
            parts.append(f"gated by {method}, {asked:.1%} asked at {len(gates)} places")
        return " and ".join(parts) or "neither pruned nor gated"

    @property
    def _reads_pixels(self) -> bool:
        return getattr(self.model, "main_input_name", "input_ids") == "pixel_values"

    def _tokenizer(self) -> Any:
        if self.settings.prompt is None and self.settings.text is None:
            return None
        if self.settings.prompt is not None and not self.decoder:
            raise InvalidValue(
                f"{self.directory} holds a {type(self.model).__name__}, an encoder: it reads and "
                "does not write, so a prompt means nothing to it. Leave --prompt out: its layers "
                "and whole passes are timed; --text FILE compares its outputs with dense."
            )
        try:
            return load_tokenizer(self.directory)
        except (OSError, ValueError) as error:
            raise InvalidValue(
                f"{self.directory} has no tokenizer, so prompt and text cannot be read to the "
                "model. Put its tokenizer.json there, or leave --prompt and --text out."
            ) from error

    def _prompt(self) -> Tensor | None:
        if self.settings.prompt is None:
            return None
        ids = tokenize(self.tokenizer, self.settings.prompt)
        check_fits(self.model, len(ids), self.settings.tokens)
        return ids

    def _original(self, source: str | Path) -> nn.Module:
        original = without_gates(_loaded(Path(source), self.settings.dtype, self.notes))
        sizes = [getattr(m.config, "vocab_size", None) for m in (self.model, original)]
        if sizes[0] != sizes[1] or _is_decoder(original) != self.decoder:
            raise InvalidValue(
                f"{source} is not the original of {self.directory}: one is a "
                f"{type(original).__name__} with {sizes[1]} tokens in its vocabulary, the other a "
                f"{type(self.model).__name__} with {sizes[0]}"
            )
        return original

    def _windows(self) -> Tensor:
        window = self.settings.window or context_length(self.model)
        ids = tokenize(self.tokenizer, self.text or "")
        every = windows_of(ids, window)
        chosen = cut(ids, window, self.settings.most_windows)
        if len(chosen) < len(every):
            self.notes.append(
                f"quality: {len(chosen)} of the text's {len(every)} windows, at even distances"
            )
        return chosen


def _loaded(directory: Path, dtype: str, notes: list[str]) -> Any:
    """Returns a model of our own or of anyone's, in the type that it was saved in."""
    name = dtype
    if name == "auto":
        name = saved_dtype(directory)
        if name not in DTYPES:
            notes.append(f"{directory.name} is saved in {name}; it is loaded in float32")
            name = "float32"
    if name not in DTYPES:
        raise InvalidValue(f"dtype={name!r} is not known; choose auto, {' or '.join(DTYPES)}")
    return load(directory, dtype=getattr(torch, name))


def saved_dtype(directory: Path) -> str:
    """Returns the type that the config of a model directory names, "float32" if none."""
    path = directory / "config.json"
    if not path.is_file():
        return "float32"  # loading says what is wrong with the directory
    config = json.loads(path.read_text())
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


def _is_decoder(model: Any) -> bool:
    if getattr(model.config, "is_encoder_decoder", False):
        raise InvalidValue(
            f"a {type(model).__name__} encodes and decodes; models with two halves cannot be timed "
            "yet. Time its halves apart: pack(model) gives every layer's figures."
        )
    return bool(getattr(model, "can_generate", bool)())
