"""Cells are run once, kept under what they depend on, and the same whatever the number of jobs."""

import json

import pytest
import torch

from sparsecraft.core.errors import InvalidValue, NonFinite
from sparsecraft.core.seeds import generator
from sparsecraft.lab.claims.cells import Cell, Cells

CALLS = []


def measure(cell):
    CALLS.append((cell.arm, cell.seed))
    draw = torch.rand(1, generator=generator(cell.seed, cell.arm)).item()
    return {"value": draw * cell.settings.get("scale", 1), "threads": torch.get_num_threads()}


def broken(cell):
    return {"value": float("nan")}


def grid(**settings):
    return [Cell(arm, seed, settings) for arm in ("a", "b") for seed in (0, 1)]


@pytest.fixture(autouse=True)
def no_calls():
    CALLS.clear()


def test_rows_come_in_the_order_of_the_cells(tmp_path):
    rows = Cells(directory=tmp_path, version="1").rows(measure, grid())
    assert [(row.arm, row.seed, row.metric) for row in rows][::2] == [
        ("a", 0, "value"),
        ("a", 1, "value"),
        ("b", 0, "value"),
        ("b", 1, "value"),
    ]


def test_kept_cells_are_not_run_again(tmp_path):
    cells = Cells(directory=tmp_path, version="1")
    first = cells.rows(measure, grid()[:3])
    assert len(CALLS) == 3
    both = cells.rows(measure, grid())
    assert CALLS[3:] == [("b", 1)]
    assert both[:6] == first


@pytest.mark.parametrize("changed", ["version", "settings"])
def test_a_changed_claim_does_not_take_up_old_numbers(tmp_path, changed):
    Cells(directory=tmp_path, version="1").rows(measure, grid(scale=1))
    version, scale = ("2", 1) if changed == "version" else ("1", 2)
    Cells(directory=tmp_path, version=version).rows(measure, grid(scale=scale))
    assert len(CALLS) == 8


@pytest.mark.slow
def test_jobs_do_not_change_the_rows(tmp_path):
    pytest.importorskip("joblib")
    one = Cells(directory=tmp_path / "one", version="1").rows(measure, grid())
    two = Cells(directory=tmp_path / "two", version="1", jobs=2).rows(measure, grid())
    assert one == two
    assert {row.value for row in two if row.metric == "threads"} == {1}


def test_threads_are_given_back(tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        rows = Cells(directory=tmp_path, version="1").rows(measure, grid())
        assert {row.value for row in rows if row.metric == "threads"} == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_number_that_is_none_stops_the_run_and_is_not_kept(tmp_path):
    with pytest.raises(NonFinite, match="a, seed 0: value is nan"):
        Cells(directory=tmp_path, version="1").rows(broken, grid())
    assert list(tmp_path.iterdir()) == []


def test_equal_cells_are_refused(tmp_path):
    with pytest.raises(InvalidValue, match="two cells are equal"):
        Cells(directory=tmp_path, version="1").rows(measure, [*grid(), grid()[0]])


def test_progress_counts_kept_cells_as_done(tmp_path):
    told = []
    cells = Cells(directory=tmp_path, version="1", progress=lambda *args: told.append(args))
    cells.rows(measure, grid()[:2])
    cells.rows(measure, grid())
    assert told[-2:] == [("b, seed 0", 3, 4), ("b, seed 1", 4, 4)]


def test_a_kept_cell_says_what_it_is(tmp_path):
    cells = Cells(directory=tmp_path, version="1")
    cells.rows(measure, [Cell("erk at 0.1, width=4", 7, {"scale": 3})])
    record = json.loads(next(tmp_path.glob("erk_at_0.1_width=4-7-*.json")).read_text())
    assert record["arm"] == "erk at 0.1, width=4"
    assert record["seed"] == 7
    assert record["settings"] == {"scale": 3}
    assert cells.seconds() == record["seconds"]
