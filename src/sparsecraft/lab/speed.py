"""Whether a saved model runs faster than dense here, layer by layer and as a whole, and at what cost.

The model is packed: every linear layer gets the way to compute that was measured to be fastest. It
is then timed as a whole beside the dense model, and beside the best dense forms alone, so that what
smaller types bring is never counted as a gain of sparsity. Quality is that of decoding, against the
dense model on the same text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.seeds import generator
from sparsecraft.lab.decoding import Decoding, check_fits, decode_in_turns
from sparsecraft.lab.machine import environment
from sparsecraft.lab.measures.perplexity import context_length, cut, tokenize, windows_of
from sparsecraft.lab.rounds import Rounds, check_rounds, forward_in_turns
from sparsecraft.lab.speed_forms import DENSE_FORMATS, any_sparse, as_decoded, twin, without_gates
from sparsecraft.lab.speed_quality import AT_ONCE, Quality, decoder_quality, encoder_quality
from sparsecraft.lab.speed_words import verdicts
from sparsecraft.lab.tasks.pretrained import load_tokenizer
from sparsecraft.model.calibration_text import read_text, tokenize_text
from sparsecraft.model.checkpoints import load, read_settings
from sparsecraft.model.gate_hooks import installed
from sparsecraft.model.runtime import DecisionRecord, pack

Progress = Callable[[str, int, int], None]
DENSE, BEST_DENSE, PACKED = "dense", "best dense", "packed"
DTYPES = ("float32", "bfloat16")
ENCODER_TOKENS = 64
"""Tokens of each text that an encoder is timed on."""


@dataclass(frozen=True, kw_only=True)
class SpeedSettings:
    """What is measured.

    Args:
        batch_sizes: Sequences at once.
        prompt: What a decoder goes on from; without one, single tokens are timed and nothing is
            written.
        tokens: How many tokens are written.
        text: A UTF-8 file of held-out text, by which quality is judged.
        dense: The directory of the original model; by default the same directory is dense, its
            gates off and its zeros multiplied like any number.
        dtype: Of the weights as loaded: "auto" as saved, "float32" or "bfloat16".
        types: What packed weights may be stored in.
        tolerance: Relative error of a layer's output that packing may cause.
        window: Tokens in a window of the text; what the model reads by default, at most 2048.
        most_windows: At most, taken at even distances.
        rounds: How often everything is timed.
        seconds: About how long packing may measure.
        threads: Of torch and of the kernels; as they are by default.
    """

    batch_sizes: tuple[int, ...] = (1, 32)
    prompt: str | None = None
    tokens: int = 64
    text: str | Path | None = None
    dense: str | Path | None = None
    dtype: str = "auto"
    types: tuple[str, ...] = ("float32", "bfloat16", "int8")
    tolerance: float = 0.02
    window: int | None = None
    most_windows: int = 128
    rounds: int = 5
    seconds: float = 40.0
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class SpeedReport:
    """What was found.

    Args:
        name: The directory's name.
        kind: "decoder" or "encoder".
        parameters: Of the model.
        origin: How it was made sparse, in words.
        record: Every layer's candidates, choice and reason.
        forward: Batch size, then form, to milliseconds of a forward pass: one token of each
            sequence for a decoder, whole texts for an encoder.
        decoding: Form to tokens each second, where there was a prompt.
        prompt: What it went on from.
        written: Form to what it wrote.
        quality: What is lost against dense, where there was a text or a prompt.
        notes: What must be known to read the figures.
        environment: Machine, versions, kernels.
    """

    name: str
    kind: str
    parameters: int
    origin: str
    record: DecisionRecord
    forward: Mapping[int, Mapping[str, Rounds]]
    decoding: Mapping[str, Decoding] = field(default_factory=dict)
    prompt: str | None = None
    written: Mapping[str, str] = field(default_factory=dict)
    quality: Quality | None = None
    notes: tuple[str, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values; layers under "record"."""
        return {
            "name": self.name,
            "kind": self.kind,
            "parameters": self.parameters,
            "origin": self.origin,
            "forward_ms": {
                str(batch): {form: found.to_json() for form, found in forms.items()}
                for batch, forms in self.forward.items()
            },
            "decoding": {
                form: {
                    "tokens_per_second": found.rate.to_json(),
                    "prefill_ms": found.prefill.to_json(),
                    "text": self.written.get(form),
                }
                for form, found in self.decoding.items()
            },
            "prompt": self.prompt,
            "quality": None if self.quality is None else asdict(self.quality),
            "verdict": verdicts(self),
            "notes": list(self.notes),
            "environment": dict(self.environment),
            "record": self.record.to_json(),
        }


def measure_speed(
    directory: str | Path,
    settings: SpeedSettings | None = None,
    *,
    progress: Progress | None = None,
) -> SpeedReport:
    """Returns how fast the model of a directory runs here beside dense, and what it loses.

    Args:
        directory: A model directory; plain, pruned, gated or packed.
        settings: What is measured.
        progress: Called with (stage, done, total).

    Raises:
        InvalidValue: For settings that do not fit the model: a prompt for an encoder, one that
            does not fit the context, a text that is too short, another dense model.
        CheckpointError: If a directory cannot be read.
    """
    settings = settings or SpeedSettings()
    check_rounds(settings.rounds)
    with _threads(settings.threads):
        return _Measurement(Path(directory), settings, progress or _silent).report()


class _Measurement:
    """One model, its forms and its inputs, made as they are asked for."""

    def __init__(self, directory: Path, settings: SpeedSettings, tell: Progress) -> None:
        self.directory, self.settings, self.tell = directory, settings, tell
        self.notes: list[str] = []
        self.model: Any = _loaded(directory, settings, self.notes)
        self.decoder = _is_decoder(self.model)
        self.tokenizer = self._tokenizer()
        self.prompt = self._prompt()
        self.text = None if settings.text is None else read_text(settings.text)
        self.whole = without_gates(self.model)
        self.dense = self.whole if settings.dense is None else self._original(settings.dense)
        self.windows = self._windows() if self.decoder and self.text is not None else None

    def report(self) -> SpeedReport:
        """Packs, times and judges."""
        packed = self._packed(twin(self.model), None)
        forms: dict[str, nn.Module] = {DENSE: self.dense}
        if any_sparse(packed.record):
            forms[BEST_DENSE] = self._packed(twin(self.whole), DENSE_FORMATS).model
        forms[PACKED] = packed.model
        decoding = self._decoding(forms)
        forward = self._forward(forms)
        written = {name: self._text_of(found.ids[0]) for name, found in decoding.items()}
        return SpeedReport(
            name=self.directory.name,
            kind="decoder" if self.decoder else "encoder",
            parameters=sum(p.numel() for p in self.model.parameters()),
            origin=_origin(self.directory, self.model),
            record=packed.record,
            forward=forward,
            decoding=decoding,
            prompt=self.settings.prompt,
            written=written,
            quality=self._quality(packed.model, decoding),
            notes=(*self.notes, *packed.record.notes),
            environment=environment(dtype=str(self.model.dtype).removeprefix("torch.")),
        )

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
        original = without_gates(_loaded(Path(source), self.settings, self.notes))
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

    def _rows(self) -> tuple[int, ...]:
        """Returns the rows of a linear layer's input for each batch size."""
        each = 1 if self.decoder else self._length()
        return tuple(size * each for size in self.settings.batch_sizes)

    def _length(self) -> int:
        if self._reads_pixels():
            return max(1, (self.model.config.image_size // self.model.config.patch_size) ** 2)
        return min(ENCODER_TOKENS, context_length(self.model))

    def _reads_pixels(self) -> bool:
        return getattr(self.model, "main_input_name", "input_ids") == "pixel_values"

    def _packed(self, model: nn.Module, formats: tuple[str, ...] | None) -> Any:
        stage = "packing" if formats is None else "packing the best dense forms"
        return pack(
            model,
            batch_sizes=self._rows(),
            dtypes=self.settings.types,
            tolerance=self.settings.tolerance,
            formats=formats,
            example=self._example(),
            seconds=self.settings.seconds,
            keep_original=False,
            progress=lambda _, done, total: self.tell(stage, done, total),
        )

    def _example(self) -> dict[str, Tensor] | None:
        """Returns what gates and errors are judged by: held-out text, else the prompt."""
        if self.windows is not None:
            return {"input_ids": self.windows[:1]}
        return None if self.prompt is None else {"input_ids": self.prompt[None]}

    def _decoding(self, forms: Mapping[str, nn.Module]) -> dict[str, Decoding]:
        if self.prompt is None:
            return {}
        return decode_in_turns(
            forms,
            self.prompt[None],
            self.settings.tokens,
            rounds=self.settings.rounds,
            progress=lambda done, total: self.tell("decoding", done, total),
        )

    def _forward(self, forms: Mapping[str, nn.Module]) -> dict[int, dict[str, Rounds]]:
        found = {}
        for size in self.settings.batch_sizes:
            found[size] = forward_in_turns(
                forms,
                self._inputs(size),
                rounds=self.settings.rounds,
                progress=lambda done, total, size=size: self.tell(f"batch {size}", done, total),  # type: ignore[misc]
            )
        return found

    def _inputs(self, size: int) -> dict[str, Tensor]:
        config: Any = self.model.config
        draws = generator(0, "speed", size)
        if self._reads_pixels():
            shape = (size, config.num_channels, config.image_size, config.image_size)
            return {"pixel_values": torch.randn(shape, generator=draws).to(self.model.dtype)}
        tokens = 1 if self.decoder else self._length()
        return {"input_ids": torch.randint(config.vocab_size, (size, tokens), generator=draws)}

    def _quality(self, packed: nn.Module, decoding: Mapping[str, Decoding]) -> Quality | None:
        def tell(done: int, total: int) -> None:
            self.tell("quality", done, total)

        if not self.decoder:
            return self._encoder_quality(packed)
        windows, about = self.windows, self._about()
        if windows is None and self.prompt is not None:
            windows = torch.cat([self.prompt, decoding[DENSE].ids[0]])[None]
            about = "the prompt and what dense wrote; give a text for more than an impression"
        if windows is None:
            return None
        if installed(self.model):
            self.notes.append(
                "quality is that of decoding: gates act on every token but the first hundredth of "
                "a window; prompts are computed whole and lose less"
            )
        return decoder_quality(self.dense, as_decoded(self.model, packed), windows, about, tell)

    def _encoder_quality(self, packed: nn.Module) -> Quality | None:
        if self.text is None:
            return None
        window = self.settings.window or self._length()
        batches = tokenize_text(
            self.tokenizer, self.text, window=window, max_tokens=self.settings.most_windows * window
        )
        parts = [
            {name: t[i : i + AT_ONCE] for name, t in batch.items()}
            for batch in batches
            for i in range(0, len(batch["input_ids"]), AT_ONCE)
        ]
        return encoder_quality(self.dense, packed, parts, self._about())

    def _about(self) -> str:
        return f"{Path(str(self.settings.text)).name}, held out"

    def _text_of(self, ids: Tensor) -> str:
        end = getattr(self.tokenizer, "eos_token_id", None)
        whole = ids.tolist()
        stop = whole.index(end) if end in whole else len(whole)
        return self.tokenizer.decode(whole[:stop], skip_special_tokens=True)


def _loaded(directory: Path, settings: SpeedSettings, notes: list[str]) -> Any:
    """Returns a model of our own or of anyone's, in the type that it was saved in."""
    name = settings.dtype
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


def _origin(directory: Path, model: nn.Module) -> str:
    """Returns how the model was made sparse, in words."""
    pruning = read_settings(directory).get("pruning") or {}
    parts = []
    if pruning:
        method = (pruning.get("method") or {}).get("method", "an unnamed method")
        share = pruning.get("sparsity")
        parts.append(f"pruned by {method}" + ("" if share is None else f" to {share:.1%} zeros"))
    gates = list(installed(model).values())
    if gates:
        method = gates[0].origin.method.get("method", "an unnamed method")
        asked = sum(gate.asked for gate in gates) / len(gates)
        parts.append(f"gated by {method}, {asked:.1%} asked at {len(gates)} places")
    return " and ".join(parts) or "neither pruned nor gated"


def _silent(stage: str, done: int, total: int) -> None:
    """Tells nobody."""


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Sets the number of threads for a while."""
    before = torch.get_num_threads()
    if count is not None:
        if count < 1:
            raise InvalidValue(f"threads={count} is not allowed: give at least 1")
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
