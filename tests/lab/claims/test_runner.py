"""The runner: verdicts, files, resuming after a kill, and its errors."""

import csv
import importlib.util
import json
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.lab.claims import Contrast, claim_numbers, load_claim, reproduce, run_claim
from sparsecraft.lab.claims.claim import Claim
from sparsecraft.lab.claims.outcome import write_scoreboard
from sparsecraft.lab.evidence.table import Row
from sparsecraft.lab.evidence.verdict import StatedDifference

SYNTHETIC = Path(__file__).with_name("synthetic.py")
_spec = importlib.util.spec_from_file_location("synthetic_claim", SYNTHETIC)
synthetic = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synthetic)

FILES = ("verdict.json", "rows.csv", "table.md", "curve.svg")
ANY = StatedDifference(text="any", unit="accuracy", direction="greater")


def found(tmp_path, budget="small", seeds=None, **options):
    return run_claim(synthetic.claim(**options), budget, seeds, tmp_path, progress=False)


def test_a_planted_effect_holds_and_its_reverse_does_not(tmp_path):
    assert found(tmp_path)["verdict"] == "holds"
    reverse = found(tmp_path, better="rival, width=4", worse="ours, width=4")
    assert reverse["verdict"] == "does not hold"
    assert reverse["line"].startswith("99 at 3 numbers: does not hold (accuracy -0.1")


def test_one_seed_is_inconclusive(tmp_path):
    assert found(tmp_path, seeds=1)["verdict"] == "inconclusive"


def test_smoke_is_not_judged(tmp_path):
    outcome = found(tmp_path, budget="smoke")
    assert outcome["verdict"] is None
    assert outcome["line"] == "99 smoke: no verdict"
    assert outcome["differences"] == []


def test_verdict_json_says_everything(tmp_path):
    outcome = found(tmp_path)
    assert json.loads((tmp_path / "99-small" / "verdict.json").read_text()) == outcome
    assert outcome.keys() == {
        "schema", "number", "title", "paper", "claim_version", "budget", "seeds", "scale",
        "verdict", "line", "differences", "tuning",
        "remark", "full_scale", "seconds", "machine", "versions",
        "rows",
    }  # fmt: skip
    (difference,) = outcome["differences"]
    assert difference["terms"] == {"ours, width=4": 1.0, "rival, width=4": -1.0}
    assert difference["n"] == 3 == len(difference["by_seed"])
    assert difference["low"] < difference["estimate"] < difference["high"]
    half = (difference["high"] - difference["low"]) / 2
    assert difference["smallest_detectable"] == pytest.approx(half + 0.05)
    assert outcome["seeds"] == [0, 1, 2]
    assert {"wall", "cells"} == outcome["seconds"].keys()
    assert "torch" in outcome["versions"]


def test_the_other_files_hold_the_same_rows(tmp_path):
    outcome = found(tmp_path)
    folder = tmp_path / "99-small"
    with (folder / "rows.csv").open() as file:
        rows = [
            [r["arm"], int(r["seed"]), r["metric"], float(r["value"])] for r in csv.DictReader(file)
        ]
    assert rows == outcome["rows"]
    assert outcome["line"] in (folder / "table.md").read_text()
    words = "".join(ElementTree.parse(folder / "curve.svg").getroot().itertext())
    assert "ours" in words
    assert "dense" in words


def test_a_killed_run_resumes_to_the_same_end(tmp_path):
    whole = found(tmp_path / "whole")
    command = [sys.executable, SYNTHETIC, tmp_path]
    killed = subprocess.run(command, check=True, capture_output=True, text=True)
    assert killed.stdout.split() == [str(-signal.SIGKILL)] * 9
    for measured in range(9):
        out = tmp_path / str(measured)
        assert len(list(out.rglob("cells/*/*.json"))) == measured
        assert not (out / "99-small" / "verdict.json").exists()
        synthetic.KILL["measured"] = 0
        resumed = found(out)
        assert synthetic.KILL["measured"] == 9 - measured
        assert {**resumed, "seconds": None} == {**whole, "seconds": None}
        for name in FILES[1:]:
            assert (out / "99-small" / name).read_bytes() == (
                tmp_path / "whole" / "99-small" / name
            ).read_bytes()


def test_a_new_version_does_not_reuse_cells(tmp_path):
    found(tmp_path)
    synthetic.KILL["measured"] = 0
    found(tmp_path, version=2)
    assert synthetic.KILL["measured"] == 9


def test_the_verdict_line_is_printed(tmp_path, capsys):
    outcome = run_claim(synthetic.claim(), "small", None, tmp_path)
    printed = capsys.readouterr().out
    assert outcome["line"] in printed
    assert "| ours, width=4 |" in printed


def test_the_scoreboard_keeps_what_does_not_hold(tmp_path):
    good = found(tmp_path)
    bad = found(tmp_path, better="rival, width=4", worse="ours, width=4")
    board, table = write_scoreboard([good, bad], tmp_path, "small")
    assert [each["verdict"] for each in board["claims"]] == ["holds", "does not hold"]
    assert json.loads((tmp_path / "scoreboard.json").read_text()) == board
    assert table.count("| 99 |") == 2
    assert bad["line"] in (tmp_path / "scoreboard.md").read_text()


def test_an_unknown_number_lists_the_known():
    with pytest.raises(UnknownName, match=r"Unknown claim '77'.*Known: .*03"):
        reproduce(77)
    with pytest.raises(UnknownName, match="Unknown claim 'wanda'"):
        reproduce("wanda")


def test_an_unknown_budget_lists_the_known():
    with pytest.raises(UnknownName, match=r"Did you mean 'small'\?"):
        reproduce(3, budget="smal")


@pytest.mark.parametrize("seeds", [0, [], [1, 1], [-1]])
def test_seeds_must_be_different_and_some(tmp_path, seeds):
    with pytest.raises(InvalidValue, match="seeds="):
        found(tmp_path, seeds=seeds)


def test_jobs_must_be_some(tmp_path):
    with pytest.raises(InvalidValue, match="jobs=0"):
        run_claim(synthetic.claim(), "small", None, tmp_path, jobs=0)


@pytest.mark.parametrize("number", claim_numbers())
def test_every_file_holds_its_claim(number):
    claim = load_claim(f"{number:02d}")
    assert isinstance(claim, Claim)
    assert claim.number == claim.paper.number == number
    assert load_claim(number) is claim


def test_a_contrast_pairs_by_seed_and_adds_its_constant():
    contrast = Contrast(stated=ANY, metric="m", terms={"a": 1.0, "b": -2.0}, constant=0.5)
    rows = [Row("b", 1, "m", 1.0), Row("a", 0, "m", 3.0), Row("a", 1, "m", 5.0)]
    rows += [Row("b", 0, "m", 2.0), Row("a", 0, "other", 9.0)]
    assert contrast.differences(rows).tolist() == [-0.5, 3.5]


def test_a_contrast_refuses_unpaired_seeds_and_unknown_arms():
    contrast = Contrast(stated=ANY, metric="m", terms={"a": 1.0, "b": -1.0})
    rows = [Row("a", 0, "m", 1.0), Row("a", 1, "m", 1.0), Row("b", 0, "m", 1.0)]
    with pytest.raises(InvalidValue, match="'b' has no 'm' for seed 1"):
        contrast.differences(rows)
    with pytest.raises(UnknownName, match="arm with 'm' 'b'"):
        contrast.differences(rows[:2])
