"""Many claims at once: one pool for all cells, failures stand alone, a kill costs no cell."""

import dataclasses
import importlib.util
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sparsecraft.core.errors import InvalidValue, NonFinite, UnknownName
from sparsecraft.lab.claims import reproduce
from sparsecraft.lab.claims.cells import Cell
from sparsecraft.lab.claims.runner import run_all

MANY = Path(__file__).with_name("many.py")
_spec = importlib.util.spec_from_file_location("many_claims", MANY)
many = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(many)
synthetic = many.synthetic

CELLS = 9
MEASURED = []


def counted(cell):
    MEASURED.append((cell.settings.get("claim"), cell.arm, cell.seed))
    return synthetic.measure(cell)


def raising(cell):
    MEASURED.append((cell.settings.get("claim"), cell.arm, cell.seed))
    if cell.arm == "second":
        raise ZeroDivisionError("by zero\nin two lines")
    return {"accuracy": 1.0}


def nothing(cell):
    return {"accuracy": float("nan")}


def claim(number, measure=counted, arms=("first", "second", "third")):
    def run(budget, seeds, cells):
        grid = [Cell(arm, seed, {"claim": number, "mean": 0.5}) for seed in seeds for arm in arms]
        return cells.rows(measure, grid)

    made = synthetic.claim(better=arms[0], worse=arms[-1])
    return dataclasses.replace(made, number=number, run=run, curve=None)


def together(tmp_path, *claims, **options):
    by_number = {each.number: each for each in claims}
    return run_all(
        "small", 2, tmp_path, 1, False, numbers=list(by_number), load=by_number.get, **options
    )


@pytest.fixture(autouse=True)
def no_measurements():
    MEASURED.clear()


def test_the_verdicts_are_those_of_claims_run_alone(tmp_path):
    board = many.reproduce_all(tmp_path)
    assert [each["number"] for each in board["claims"]] == list(many.NUMBERS)
    assert {each["verdict"] for each in board["claims"]} == {"holds"}
    assert board["waiting"] == []
    for number in many.NUMBERS:
        from sparsecraft.lab.claims import run_claim

        alone = run_claim(many.load(number), "small", None, tmp_path / "alone", progress=False)
        found = json.loads((tmp_path / f"{number}-small" / "verdict.json").read_text())
        assert {**found, "seconds": None} == {**alone, "seconds": None}
    assert json.loads((tmp_path / "scoreboard.json").read_text()) == board


def test_cells_of_all_claims_come_from_one_queue(tmp_path):
    together(tmp_path, claim(1), claim(2))
    assert [number for number, _, _ in MEASURED] == [1] * 6 + [2] * 6
    together(tmp_path, claim(1), claim(2), claim(3))
    assert [number for number, _, _ in MEASURED[12:]] == [3] * 6


def test_a_claim_that_raises_stands_alone(tmp_path):
    board = together(tmp_path, claim(1), claim(2, raising), claim(3, nothing), claim(4))
    words = [each["verdict"] for each in board["claims"]]
    assert words == ["inconclusive", "failed", "failed", "inconclusive"]
    assert board["claims"][1]["line"] == "02 failed: ZeroDivisionError: by zero in two lines"
    assert "accuracy is nan" in board["claims"][2]["line"]
    table = (tmp_path / "scoreboard.md").read_text()
    assert "| 02 | Ours beats the rival | failed | 02 failed: ZeroDivisionError" in table
    # What came after the error was not measured any more; what came before it is kept.
    assert [arm for number, arm, _ in MEASURED if number == 2] == ["first", "second"]
    assert len(list((tmp_path / "02-small").rglob("cells/*/*.json"))) == 1


def test_a_failed_claim_is_tried_again(tmp_path):
    together(tmp_path, claim(2, raising))
    MEASURED.clear()
    board = together(tmp_path, claim(2))
    assert board["claims"][0]["verdict"] == "inconclusive"
    assert len(MEASURED) == 5


def test_a_run_that_raises_outside_its_cells_fails_too(tmp_path):
    def run(budget, seeds, cells):
        raise KeyError("no such data")

    board = together(tmp_path, dataclasses.replace(claim(1), run=run), claim(2))
    assert board["claims"][0]["line"] == "01 failed: KeyError: 'no such data'"
    assert board["claims"][1]["verdict"] == "inconclusive"


def test_a_file_that_cannot_be_imported_fails_alone(tmp_path):
    def load(number):
        if number == 5:
            raise SyntaxError("invalid syntax")
        return claim(number)

    board = run_all("smoke", None, tmp_path, 1, False, numbers=[5, 6], load=load)
    assert [each["line"] for each in board["claims"]] == [
        "05 failed: SyntaxError: invalid syntax",
        "06 smoke: no verdict",
    ]


def test_the_scoreboard_is_written_after_each_claim(tmp_path):
    seen = []

    def spying(cell):
        board = tmp_path / "scoreboard.json"
        seen.append(json.loads(board.read_text()) if board.exists() else None)
        return counted(cell)

    together(tmp_path, claim(1), claim(2, spying))
    assert [each["number"] for each in seen[-1]["claims"]] == [1]
    assert seen[-1]["waiting"] == [2]


def test_a_killed_run_of_all_resumes_to_the_same_end(tmp_path):
    whole = many.reproduce_all(tmp_path / "whole")
    counts = (1, 4, 9, 13, 27)
    command = [sys.executable, MANY, tmp_path, "1", *map(str, counts)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.split() == [str(-signal.SIGKILL)] * len(counts)
    for count in counts:
        out = tmp_path / str(count)
        assert len(list(out.rglob("cells/*/*.json"))) == count
        synthetic.KILL["measured"] = 0
        assert many.reproduce_all(out) == whole
        assert synthetic.KILL["measured"] == 3 * CELLS - count


@pytest.mark.slow
def test_a_killed_run_in_several_processes_resumes_to_the_same_end(tmp_path):
    pytest.importorskip("joblib")
    command = [sys.executable, MANY, tmp_path, "2", "8"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.split() == [str(-signal.SIGKILL)]
    assert len(list((tmp_path / "8").rglob("cells/*/*.json"))) == 8
    assert many.reproduce_all(tmp_path / "8") == many.reproduce_all(tmp_path / "whole")


def test_an_error_of_one_claim_alone_is_raised_as_it_is(tmp_path):
    from sparsecraft.lab.claims import run_claim

    with pytest.raises(NonFinite, match="accuracy is nan"):
        run_claim(claim(1, nothing), "small", 1, tmp_path, progress=False)


def test_an_unknown_back_end_and_too_few_jobs_are_refused_before_any_work(tmp_path):
    with pytest.raises(UnknownName, match=r"Unknown back end 'rai'. Did you mean 'ray'\?"):
        reproduce("all", "smoke", out=tmp_path, backend="rai")
    with pytest.raises(InvalidValue, match="jobs=0"):
        reproduce("all", "smoke", out=tmp_path, jobs=0)
    assert list(tmp_path.iterdir()) == []
