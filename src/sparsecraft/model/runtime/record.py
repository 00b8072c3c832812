"""The decision record: for each layer and number of rows, what was measured, chosen, and why.

It is what `pack` did, in plain values: printed as a table, saved as `runtime.json` beside a packed
model, and read again where the same machine packs the same model a second time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sparsecraft.core.errors import CheckpointError
from sparsecraft.model.files import write_atomic

RUNTIME = "runtime.json"
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class CandidateRecord:
    """One way to compute a layer, and what is known of it.

    Args:
        name: Format and type, for example "bitmask bfloat16".
        microseconds: Median of one call; None where it was not timed.
        low: Lower quartile of the timed calls.
        high: Upper quartile.
        rounds: How many calls were timed.
        bytes: Of the stored weight; None where it was not stored.
        error: ||y - y_float32|| / ||y_float32|| on inputs of the layer; None where not computed.
        note: Why it was not timed or not taken; empty where it only was not the fastest.
    """

    name: str
    microseconds: float | None = None
    low: float | None = None
    high: float | None = None
    rounds: int = 0
    bytes: int | None = None
    error: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class LayerChoice:
    """What one layer computes with, for one number of rows.

    Args:
        layer: Module name.
        rows: Rows of its input that the choice is for.
        shape: (outputs, inputs).
        density: Share of the weights that are not zero.
        kept: Mean share of its inputs that its gate keeps; None without a gate.
        baseline: Name of the candidate that is the layer as it was.
        chosen: Name of the candidate taken.
        why: In words.
        candidates: All that were looked at, and those that could not be.
        timed_on: The layer that the times come from; like layers share one measurement.
        bytes: What this layer's chosen form holds.
        error: Of this layer with the chosen form.
    """

    layer: str
    rows: int
    shape: tuple[int, int]
    density: float
    kept: float | None = None
    baseline: str
    chosen: str
    why: str
    candidates: tuple[CandidateRecord, ...]
    timed_on: str
    bytes: int = 0
    error: float = 0.0

    def __getitem__(self, name: str) -> CandidateRecord:
        """Returns the candidate of this name.

        Raises:
            KeyError: If it was not looked at.
        """
        for candidate in self.candidates:
            if candidate.name == name:
                return candidate
        raise KeyError(name)

    @property
    def speed_up(self) -> float:
        """Time of the layer as it was over time of the chosen form; 1 where it stays."""
        return self._over([self.baseline])

    @property
    def speed_up_over_dense(self) -> float:
        """The same over the fastest dense form of the chosen type that was timed."""
        dtype = self.chosen.rpartition(" ")[2]
        return self._over([name for name in self._timed() if name in dense_names(dtype)])

    def _over(self, names: Sequence[str]) -> float:
        timed = self._timed()
        against = min((timed[name] for name in names if name in timed), default=None)
        return 1.0 if against is None or self.chosen not in timed else against / timed[self.chosen]

    def _timed(self) -> dict[str, float]:
        return {c.name: c.microseconds for c in self.candidates if c.microseconds is not None}


@dataclass(frozen=True, kw_only=True)
class DecisionRecord:
    """Everything that `pack` decided, and what the decisions rest on.

    Args:
        machine: Processor, threads, versions, native kernels; equal ones may share a record.
        settings: Batch sizes, types, tolerance, formats, memory, margin.
        choices: One for each layer and number of rows, in model order.
        left_alone: Matrices that were not touched, with the reason.
        notes: What applies to the whole measurement, in words.
        bytes: Held by the layers for inference now.
        dense_bytes: Held by the same layers before.
        seconds: What packing took.
    """

    machine: Mapping[str, Any]
    settings: Mapping[str, Any]
    choices: tuple[LayerChoice, ...]
    left_alone: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    bytes: int = 0
    dense_bytes: int = 0
    seconds: float = 0.0

    def of(self, layer: str) -> tuple[LayerChoice, ...]:
        """Returns the choices of one layer, one for each number of rows."""
        return tuple(choice for choice in self.choices if choice.layer == layer)

    def summary(self) -> str:
        """Returns one line for each number of rows: how many layers left dense, and the gain."""
        lines = []
        for rows in dict.fromkeys(choice.rows for choice in self.choices):
            mine = [choice for choice in self.choices if choice.rows == rows]
            timed = [c for c in mine if c[c.baseline].microseconds is not None]
            before = sum(c[c.baseline].microseconds or 0.0 for c in timed)
            after = sum((c[c.baseline].microseconds or 0.0) / c.speed_up for c in timed)
            kinds: dict[str, int] = {}
            for choice in mine:
                kinds[choice.chosen] = kinds.get(choice.chosen, 0) + 1
            counted = ", ".join(f"{count} x {name}" for name, count in kinds.items())
            gain = before / after if after else 1.0
            verdict = f"{gain:.2f}x as fast" if gain > 1 else "no speed-up here"
            lines.append(f"{rows} row{'s' if rows > 1 else ''}: {counted}; layers {verdict}")
        lines.append(
            f"weights: {self.bytes / 1e6:.1f} MB, {self.bytes / max(self.dense_bytes, 1):.2f} of "
            f"the {self.dense_bytes / 1e6:.1f} MB before"
        )
        return "\n".join(lines)

    def table(self) -> str:
        """Returns one line for each layer and number of rows, and what was left alone."""
        header = ("layer", "rows", "density", "kept", "was us", "now us", "gain", "error", "why")
        rows = [header, *(_cells(choice) for choice in self.choices)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
        lines = ["  ".join(_aligned(row, widths)).rstrip() for row in rows]
        lines += [f"{name}: left alone, {reason}" for name, reason in self.left_alone.items()]
        return "\n".join([*lines, *self.notes, self.summary()])

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values."""
        return {"sparsecraft_runtime": _VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> DecisionRecord:
        """Returns the record of these plain values.

        Raises:
            CheckpointError: If they are not those of a record of this version.
        """
        if values.get("sparsecraft_runtime") != _VERSION:
            raise CheckpointError(
                f"not a decision record of version {_VERSION}; leave it out and pack measures again"
            )
        given = {key: value for key, value in values.items() if key != "sparsecraft_runtime"}
        try:
            choices = tuple(_choice(each) for each in given.pop("choices"))
            return cls(choices=choices, notes=tuple(given.pop("notes")), **given)
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"damaged decision record: {error!r}") from error

    def save(self, path: str | Path) -> None:
        """Writes it as JSON, whole or not at all."""
        write_atomic(Path(path), json.dumps(self.to_json(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> DecisionRecord:
        """Returns the record of a file, or of the file `runtime.json` in a folder.

        Raises:
            CheckpointError: If there is none, or it is damaged.
        """
        file = Path(path)
        file = file / RUNTIME if file.is_dir() else file
        try:
            return cls.from_json(json.loads(file.read_text()))
        except OSError as error:
            raise CheckpointError(f"there is no decision record {file}") from error
        except json.JSONDecodeError as error:
            raise CheckpointError(f"{file} is not valid JSON: {error}") from error


def dense_names(dtype: str) -> tuple[str, ...]:
    """Returns the names of all candidates that multiply by every weight of this type."""
    return f"torch {dtype}", f"dense {dtype}", f"by_input {dtype}"


def _choice(values: Mapping[str, Any]) -> LayerChoice:
    made = dict(values)
    made["shape"] = tuple(made["shape"])
    made["candidates"] = tuple(CandidateRecord(**each) for each in made["candidates"])
    return LayerChoice(**made)


def _cells(choice: LayerChoice) -> tuple[str, ...]:
    before, now = choice[choice.baseline], choice[choice.chosen]
    return (
        choice.layer,
        str(choice.rows),
        f"{choice.density:.2f}",
        "" if choice.kept is None else f"{choice.kept:.2f}",
        "" if before.microseconds is None else f"{before.microseconds:.0f}",
        "" if now.microseconds is None else f"{now.microseconds:.0f}",
        f"{choice.speed_up:.2f}x",
        f"{choice.error:.1e}",
        choice.why,
    )


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    left = {0, len(row) - 1}
    return [
        cell.ljust(width) if i in left else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
