from __future__ import annotations

import csv
import json
import math

import pytest

from sparsecraft.lab.report import write_report
from sparsecraft.lab.report.files import write_atomically


def read(path):
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_writes_three_files_and_nothing_else(record, tmp_path):
    path = write_report(record, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "report.html"
    names = sorted(item.name for item in path.parent.iterdir())
    assert names == ["comparison.json", "report.html", "results.csv"]


def test_csv_gives_back_every_run(record, tmp_path):
    record["arms"][3]["id"] = 'odd, "id"'
    rows = read(write_report(record, tmp_path).parent / "results.csv")
    assert list(rows[0]) == ["arm", "seed", "split", "metric", "value"]
    values = {
        (row["arm"], row["seed"], row["split"]): float(row["value"])
        for row in rows
        if row["metric"] == "nDCG@10"
    }
    expected = {
        (arm["id"], str(run["seed"]), split): run[split]
        for arm in record["arms"]
        for run in arm["runs"]
        for split in ("validation", "test")
    }
    assert values == expected


def test_csv_rows_are_tidy_and_hold_the_arm_values(record, tmp_path):
    rows = read(write_report(record, tmp_path).parent / "results.csv")
    keys = [tuple(row[name] for name in ("arm", "seed", "split", "metric")) for row in rows]
    assert len(keys) == len(set(keys))
    values = dict(zip(keys, (float(row["value"]) for row in rows), strict=True))
    arm = record["arms"][-1]
    assert values[arm["id"], "", "", "bytes_plain"] == arm["bytes"]["plain"]
    assert values[arm["id"], "", "", "latency_ms_batch_32"] == arm["latency"]["32"]["ms"]
    assert values[arm["id"], "", "test", "drop_high"] == arm["drop"]["high"]
    assert values[arm["id"], "0", "test", "cosine"] == arm["runs"][0]["extra"]["cosine"]


def test_json_is_the_record_with_null_for_what_is_not_finite(record, tmp_path):
    record["arms"][1]["test"] = math.nan
    record["arms"][2]["sd"] = math.inf
    path = write_report(record, tmp_path).parent / "comparison.json"
    loaded = json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert loaded["arms"][1]["test"] is None
    assert loaded["arms"][2]["sd"] is None
    record["arms"][1]["test"] = record["arms"][2]["sd"] = None
    assert loaded == record


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "page.html"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text(encoding="utf-8") == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["page.html"]
