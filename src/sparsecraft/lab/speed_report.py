"""What `speed` is asked to measure, and what it found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sparsecraft.lab.decoding import Decoding
from sparsecraft.lab.rounds import Rounds
from sparsecraft.lab.speed_quality import Quality
from sparsecraft.lab.speed_words import verdicts
from sparsecraft.model.runtime import DecisionRecord


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
