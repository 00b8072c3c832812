"""Claim 02: its grid, what it scores, and the rows of the dense model cut at its end."""

import math

import pytest
import torch

from sparsecraft.lab.claims import c02_nm_decay as c02
from sparsecraft.lab.claims import source_bytes
from sparsecraft.lab.claims.cells import Cell
from sparsecraft.lab.evidence.table import Row


@pytest.mark.parametrize("budget", ["small", "full"])
def test_the_grid_has_every_stated_arm_and_no_cell_twice(budget):
    arms = [cell.arm for cell in c02._grid(budget, 0)]
    assert len(set(arms)) == len(arms)
    for contrast in c02.STATED:
        assert contrast.terms.keys() <= set(arms)
        assert sum(contrast.terms.values()) == pytest.approx(0)


def test_full_contains_small():
    small, full = (
        {(c.arm, str(c.settings)) for c in c02._grid(budget, 0)} for budget in ("small", "full")
    )
    assert small <= full


def few_bytes(seed=0):
    return source_bytes.Source(*(torch.arange(512) % 7 for _ in range(3)))


def test_every_method_of_the_grid_fits_the_model():
    model = source_bytes.byte_model(c02.LAYERS, c02.WIDTH, 0, c02.CONTEXT)
    data = few_bytes()
    for cell in c02._grid("full", 0):
        settings = {
            name: value
            for name, value in cell.settings.items()
            if name not in ("steps", "width", "rate", "cut to")
        }
        if settings:
            found = c02._sparsifier(model, data, 10, 0, settings)
            assert set(found.layers) == {f"blocks.{n}.fc{k}" for n in (0, 1) for k in (1, 2)}
            found.detach()


def test_one_shot_figures_of_the_dense_cell_become_arms():
    row = Row("dense", 3, "one-shot 1:16", 2.5)
    assert c02._own_arm(row) == Row("one-shot, sparsity=0.9375", 3, "bits per byte", 2.5)
    other = Row("dense", 3, "bits per byte", 2.0)
    assert c02._own_arm(other) is other


def test_what_is_scored_is_the_exported_model(monkeypatch):
    monkeypatch.setattr(source_bytes, "load_source", few_bytes)
    cell = c02._cell("mdgf exponential", "1:16", 0, steps=3, width=64)
    found = c02.measure(cell)
    assert found["feed-forward density"] == 1 / 16
    assert 0 < found["bits per byte"] < 9
    dense = c02.measure(Cell("dense", 0, {**c02._cell("dense", "", 0, steps=3, width=64).settings}))
    assert dense["feed-forward density"] == 1
    assert {"one-shot 2:4", "one-shot 1:16", "one-shot 1:32"} <= dense.keys()


def test_second_moments_are_corrected_for_their_start():
    gradient = torch.tensor([[1.0, 3.0]])
    state = {"exp_avg_sq": (1 - c02.BETAS[1]) * gradient**2}
    found = c02._second_moment([state], steps=1)
    assert found[c02.MEAN] == pytest.approx(math.log10(5))
    assert found[c02.VARIANCE] == pytest.approx(math.log10(32))
