"""The decision record says what was measured, survives a file, and is refused when damaged."""

import json

import pytest

from sparsecraft.core.errors import CheckpointError
from sparsecraft.model.runtime.record import CandidateRecord, DecisionRecord, LayerChoice


def choice(layer="mlp", rows=1, chosen="bitmask bfloat16", **changes):
    candidates = (
        CandidateRecord(name="torch float32", microseconds=100.0, rounds=5, bytes=400, error=0.0),
        CandidateRecord(name="torch bfloat16", microseconds=80.0, rounds=5, bytes=200, error=0.003),
        CandidateRecord(name="dense bfloat16", microseconds=50.0, rounds=5, bytes=200, error=0.002),
        CandidateRecord(
            name="bitmask bfloat16", microseconds=25.0, rounds=9, bytes=113, error=0.002
        ),
        CandidateRecord(name="csr int8", note="no such format"),
    )
    facts = {
        "layer": layer,
        "rows": rows,
        "shape": (10, 10),
        "density": 0.5,
        "baseline": "torch float32",
        "chosen": chosen,
        "why": "because",
        "candidates": candidates,
        "timed_on": layer,
        "bytes": 113,
        "error": 0.002,
    }
    return LayerChoice(**{**facts, **changes})


def record(*choices):
    return DecisionRecord(
        machine={"processor": "a", "threads": 2},
        settings={"tolerance": 0.02},
        choices=choices or (choice(), choice(rows=32, chosen="torch float32")),
        left_alone={"embedding": "looked up"},
        notes=("inputs: random tokens",),
        bytes=113,
        dense_bytes=400,
        seconds=1.5,
    )


def test_gains():
    made = choice()
    assert made.speed_up == 4.0
    assert made.speed_up_over_dense == 2.0
    assert made["csr int8"].note == "no such format"
    with pytest.raises(KeyError):
        made["elsewhere"]
    assert choice(chosen="torch float32").speed_up == 1.0


def test_it_survives_a_file(tmp_path):
    made = record()
    made.save(tmp_path / "runtime.json")
    assert DecisionRecord.load(tmp_path / "runtime.json") == made
    assert DecisionRecord.load(tmp_path) == made
    assert json.loads((tmp_path / "runtime.json").read_text())["choices"][0]["why"] == "because"


def test_the_table_says_it_all():
    table = record().table()
    assert table.splitlines()[0].split() == [
        "layer",
        "rows",
        "density",
        "kept",
        "was",
        "us",
        "now",
        "us",
        "gain",
        "error",
        "why",
    ]
    assert "4.00x" in table
    assert "embedding: left alone, looked up" in table
    assert "inputs: random tokens" in table
    assert "1 row: 1 x bitmask bfloat16; layers 4.00x as fast" in table
    assert "32 rows: 1 x torch float32; layers no speed-up here" in table
    assert "weights: 0.0 MB, 0.28 of the 0.0 MB before" in table


def test_choices_of_a_layer():
    assert [c.rows for c in record().of("mlp")] == [1, 32]
    assert record().of("elsewhere") == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "not a decision record of version 1"),
        ("{", "not valid JSON"),
        ('{"sparsecraft_runtime": 1}', "damaged decision record"),
        ('{"sparsecraft_runtime": 2, "choices": []}', "not a decision record of version 1"),
    ],
)
def test_damaged_records_are_refused(tmp_path, content, message):
    (tmp_path / "runtime.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        DecisionRecord.load(tmp_path)


def test_a_missing_record_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="there is no decision record"):
        DecisionRecord.load(tmp_path)
