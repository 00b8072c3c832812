"""The files of a report: written whole or not at all, numbers that are not finite as null."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sparsecraft.lab.report.arms import BATCHES, Arm, Comparison, arms_of, metric_of
from sparsecraft.lab.report.values import finite, number


class TidyRow(NamedTuple):
    """One line of `results.csv`; seed and split are empty where a value belongs to neither."""

    arm: str
    seed: str
    split: str
    metric: str
    value: float


def write_atomically(path: Path, text: str) -> None:
    """Writes the text so that a reader finds either the old file or the whole new one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    part = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        part.chmod(0o644)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def as_json(comparison: Comparison) -> str:
    """Returns the comparison as JSON; what is not finite becomes null."""
    return json.dumps(finite(comparison), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def as_csv(comparison: Comparison) -> str:
    """Returns the comparison as tidy rows: arm, seed, split, metric, value."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(TidyRow._fields)
    for row in tidy_rows(comparison):
        writer.writerow([*row[:-1], repr(row.value)])
    return stream.getvalue()


def tidy_rows(comparison: Comparison) -> Iterator[TidyRow]:
    """Yields every measured value: those of each run first, then those of the arm."""
    metric = metric_of(comparison)
    for arm in arms_of(comparison):
        name = str(arm.get("id"))
        for run in arm.get("runs") or ():
            yield from _run_rows(name, run, metric)
        for (split, what), path in _ARM_VALUES.items():
            value = number(arm, *path)
            if value is not None:
                yield TidyRow(name, "", split, what.format(metric=metric), value)
        yield from _layer_rows(name, arm)


def _run_rows(name: str, run: Mapping[str, Any], metric: str) -> Iterator[TidyRow]:
    seed = "" if run.get("seed") is None else str(run["seed"])
    for split in ("validation", "test"):
        value = number(run, split)
        if value is not None:
            yield TidyRow(name, seed, split, metric, value)
    for group, split, prefix in (("extra", "test", ""), ("seconds", "", "seconds_")):
        for key in run.get(group) or ():
            value = number(run, group, key)
            if value is not None:
                yield TidyRow(name, seed, split, f"{prefix}{key}", value)


def _layer_rows(name: str, arm: Arm) -> Iterator[TidyRow]:
    for layer in arm.get("layers") or ():
        for kind in ("asked", "achieved"):
            value = number(layer, kind)
            if value is not None:
                yield TidyRow(name, "", "", f"density_{kind}:{layer.get('name')}", value)


_ARM_VALUES: dict[tuple[str, str], tuple[str, ...]] = {
    ("validation", "{metric}_mean"): ("validation",),
    ("test", "{metric}_mean"): ("test",),
    ("test", "{metric}_sd"): ("sd",),
    ("test", "drop"): ("drop", "estimate"),
    ("test", "drop_low"): ("drop", "low"),
    ("test", "drop_high"): ("drop", "high"),
    ("", "sparsity_asked"): ("asked",),
    ("", "sparsity"): ("sparsity",),
    ("", "sparsity_all"): ("sparsity_all",),
    ("", "bytes_plain"): ("bytes", "plain"),
    ("", "bytes_packed"): ("bytes", "packed"),
    ("", "flops_dense"): ("flops", "dense"),
    ("", "flops_effective"): ("flops", "effective"),
    **{
        ("", f"latency_{key}_batch_{batch}"): ("latency", batch, key)
        for batch in BATCHES
        for key in ("ms", "ms_low", "ms_high", "dense_ms", "ratio", "ratio_low", "ratio_high")
    },
    **{("", f"examples_per_second_batch_{batch}"): ("throughput", batch) for batch in BATCHES},
}
