"""Claim 20: its grid, and that what is scored is the exported 2:4 model."""

import pytest
import torch

from sparsecraft.lab.claims import c20_cast as c20
from sparsecraft.lab.claims import source_bytes
from sparsecraft.lab.claims.cells import Cell


@pytest.fixture
def few_bytes(monkeypatch):
    found = source_bytes.Source(*(torch.arange(512) % 7 for _ in range(3)))
    monkeypatch.setattr(source_bytes, "load_source", lambda seed: found)
    c20._pretrained.cache_clear()
    yield
    c20._pretrained.cache_clear()


@pytest.mark.parametrize("budget", ["smoke", "small", "full"])
def test_the_grid_has_every_stated_arm_and_no_arm_twice(budget):
    arms = [cell.arm for cell in c20._grid(budget, 0)]
    assert len(set(arms)) == len(arms)
    for contrast in c20.STATED:
        assert contrast.terms.keys() <= set(arms)


def test_trained_arms_have_the_same_rates_and_steps():
    cells = [c for c in c20._grid("full", 0) if "method" in c.settings or "continued" in c.settings]
    assert {(tuple(c.settings["rates"]), c.settings["steps"]) for c in cells} == {
        (c20.RATES[c20.VERSION], c20.SIZES["full"]["steps"])
    }


def measured(cell):
    small = {"layers": 1, "width": 32, "pretraining": 2, "steps": 3, "rates": [3e-3]}
    return c20.measure(Cell(cell.arm, 0, {**cell.settings, **small}))


ARMS = {cell.arm: cell for cell in c20._grid("full", 0)}


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_can_be_measured(arm, few_bytes):
    found = measured(ARMS[arm])
    assert 0 < found[c20.BITS] < 9
    if "method" in ARMS[arm].settings:
        assert found["sparsity"] == 0.5
        assert found["learning rate"] == 3e-3


def test_only_a_dense_forward_has_something_to_lose_at_the_end(few_bytes):
    assert measured(ARMS["cast"])[c20.JUMP] != 0
    assert measured(ARMS["ast"])[c20.JUMP] == pytest.approx(0, abs=1e-5)
    assert measured(ARMS["ast, side branch"])[c20.JUMP] == pytest.approx(0, abs=1e-5)


def test_the_better_rate_on_validation_is_reported(few_bytes, monkeypatch):
    bits = {3e-3: (1.0, 5.0), 5e-3: (2.0, 4.0)}  # (validation, test)
    monkeypatch.setattr(
        c20,
        "_trained",
        lambda settings, seed, data, rate: {
            f"validation {c20.BITS}": bits[rate][0],
            c20.BITS: bits[rate][1],
        },
    )
    cell = Cell("cast", 0, {**ARMS["cast"].settings, "rates": [5e-3, 3e-3]})
    assert c20.measure(cell)[c20.BITS] == 5.0
