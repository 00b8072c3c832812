"""The settings of a comparison: one frozen class, from which the command line is made."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from sparsecraft.core.errors import InvalidValue, UnknownName, check_sparsity
from sparsecraft.lab.choice import PREFERENCES, Prefer, check_max_drop, parse_share

DTYPES: Final = ("float32", "bfloat16", "float16")
DEMO: Final = "docs-retrieval"
FREE: Final = ("out", "overwrite", "jobs", "progress", "max_drop", "prefer", "rounds")
"""Settings that decide no run: they may change when a comparison is resumed."""
SMOKE: Final[Mapping[str, Any]] = {
    "sparsities": (0.5,),
    "seeds": 1,
    "distill_steps": 2,
    "rounds": 3,
    "calibration_tokens": 512,
}


@dataclass(frozen=True, kw_only=True)
class CompareSettings:
    """What is compared, on what, and where the results go.

    Args:
        model: A Hugging Face model directory or hub id; without one the demo runs.
        text: A text file to calibrate and judge the model on; its parts do not overlap.
        task: A named task instead of a text; see `sparsecraft.lab.tasks.task_names`.
        methods: Names of the catalog, or "file.py:Class" for your own.
        patterns: Shapes of zeros: unstructured, row, 2:4, block:4x4, channels:out, ...
            "unstructured" takes each method in its own form of it (wanda: by row).
        sparsities: Fractions of zeros to try; a pattern such as 2:4 implies its own.
        seeds: Runs of what is not deterministic; calibrated methods draw their text anew for each.
            Random pruning runs at least twice.
        max_drop: The budget: the share of the dense score that may be lost, 0.03 or "3%".
        prefer: What decides among the arms within the budget: speed, size or sparsity.
        targets: Which layers are pruned; by default the matrices of the blocks.
        out: Folder of the report and of the run store; the same settings resume in it.
        overwrite: Whether results of another comparison in that folder are replaced.
        device: Where the models run, cpu or cuda.
        dtype: Of weights and activations: float32, bfloat16 or float16.
        jobs: Processes that run cells side by side, sharing the threads.
        calibration_tokens: Text that calibrated methods see.
        ffn_keep: Fraction of the feed-forward units that the smaller arm keeps.
        heads_keep: Fraction of the attention heads that it keeps.
        distill_seconds: Time for distilling it, turned into steps when it begins.
        distill_steps: Steps of distilling it, instead of a time.
        rounds: Rounds of each timing, in turns with dense.
        progress: Whether progress is shown.
        setting: "full", or "smoke" for the smallest run that passes through everything.
    """

    model: str | None = None
    text: str | None = None
    task: str | None = None
    methods: tuple[str, ...] = ("global_magnitude", "wanda")
    patterns: tuple[str, ...] = ("unstructured", "2:4")
    sparsities: tuple[float, ...] = (0.3, 0.5, 0.7)
    seeds: int = 1
    max_drop: float = 0.05
    prefer: Prefer = "speed"
    targets: tuple[str, ...] | None = None
    out: Path = Path("sparsecraft-report")
    overwrite: bool = False
    device: str = "cpu"
    dtype: str = "float32"
    jobs: int = 1
    calibration_tokens: int = 8192
    ffn_keep: float = 0.5
    heads_keep: float = 0.75
    distill_seconds: float = 105.0
    distill_steps: int | None = None
    rounds: int = 5
    progress: bool = True
    setting: Literal["full", "smoke"] = "full"

    def __post_init__(self) -> None:
        for name in ("methods", "patterns", "sparsities", "targets"):
            _set(self, name, _several(name, getattr(self, name)))
        _set(self, "sparsities", tuple(_sparsity(each) for each in self.sparsities))
        _set(self, "max_drop", check_max_drop(parse_share(self.max_drop)))
        _set(self, "out", Path(self.out).expanduser())
        _set(self, "model", None if self.model is None else str(self.model))
        _set(self, "text", None if self.text is None else str(self.text))
        for name, known in (
            ("prefer", PREFERENCES),
            ("dtype", DTYPES),
            ("setting", ("full", "smoke")),
        ):
            if getattr(self, name) not in known:
                raise UnknownName(name, str(getattr(self, name)), known)
        for name, least in (("seeds", 1), ("jobs", 1), ("calibration_tokens", 1), ("rounds", 3)):
            _whole(name, getattr(self, name), least)
        if self.distill_steps is not None:
            _whole("distill_steps", self.distill_steps, 1)
        if not self.distill_seconds > 0:
            raise InvalidValue(f"distill_seconds={self.distill_seconds} must be above 0")
        for name in ("ffn_keep", "heads_keep"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise InvalidValue(f"{name}={getattr(self, name)} is not allowed: give (0, 1]")
        self._check_source()

    def _check_source(self) -> None:
        if self.model is None and self.text is not None:
            raise InvalidValue("a text was given but no model: name the model to compare on it")
        if self.text is not None and self.task is not None:
            raise InvalidValue("give either a text or a task to judge the model on, not both")
        if self.text is not None and not Path(self.text).expanduser().is_file():
            raise InvalidValue(f"there is no text file {self.text}")
        if self.model is not None and self.text is None and self.task is None:
            raise InvalidValue(
                f"nothing was given to judge {self.model} on: add --text FILE (a few hundred kB of "
                "plain text like what it will see) or --task NAME"
            )

    @property
    def actual(self) -> CompareSettings:
        """The settings that run: those of `smoke` are the smallest of everything."""
        if self.setting == "full":
            return self
        return dataclasses.replace(self, **SMOKE)

    def comparison(self, fingerprint: str) -> dict[str, Any]:
        """Returns what makes two comparisons the same, as plain values.

        Args:
            fingerprint: Of the task: data, splits and dense model.
        """
        values = {
            field.name: _plain(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.name not in FREE
        }
        sources = {name: source_digest(name) for name in self.methods if ".py:" in name}
        return {**values, "own methods": sources, "fingerprint": fingerprint}

    def command(self) -> str:
        """Returns the command line that repeats this comparison."""
        words = ["sparsecraft compare"]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value == field.default or field.name == "progress":
                continue
            if field.name == "model":
                words.append(_quoted(str(value)))
                continue
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            option = f"--{OPTIONS.get(field.name, field.name).replace('_', '-')}"
            words.append(option if value is True else f"{option} {_quoted(text)}")
        return " ".join(words)


OPTIONS: Final[Mapping[str, str]] = {
    "methods": "method",
    "patterns": "pattern",
    "sparsities": "sparsity",
}


def source_digest(name: str) -> str:
    """Returns a hash of the file of one's own method, so that an edited one is not mixed up."""
    path = Path(name.rpartition(":")[0]).expanduser()
    if not path.is_file():
        raise InvalidValue(f"method {name!r}: there is no file {path}")
    return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()


def _set(settings: CompareSettings, name: str, value: Any) -> None:
    object.__setattr__(settings, name, value)


def _several(name: str, value: Any) -> tuple[Any, ...] | None:
    if value is None:
        return None
    found = tuple(dict.fromkeys((value,) if isinstance(value, str | int | float) else value))
    if not found:
        raise InvalidValue(f"{name} is empty: give at least one")
    return found


def _sparsity(value: Any) -> float:
    sparsity = check_sparsity(parse_share(value))
    if sparsity == 0:
        raise InvalidValue("sparsity 0 is the dense model, which is always compared: leave it out")
    return sparsity


def _whole(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidValue(f"{name}={value!r} must be a whole number of at least {least}")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _quoted(text: str) -> str:
    return f'"{text}"' if " " in text or "*" in text or "!" in text else text
