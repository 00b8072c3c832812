"""Claim 21: arms that the statements need, and measures of the codes."""

import pytest
import torch

from sparsecraft.lab.claims import c21_mutual_feature_choice as c21
from sparsecraft.lab.claims.cells import Cell
from sparsecraft.methods.codes.topk import TopK
from sparsecraft.model.sae import SAETraining

TINY = {
    "size": [64, 4],
    "rows": 600,
    "training": {"steps": 3, "batch": 64, "learning_rate": 1e-3},
    "many": None,
}


@pytest.mark.parametrize("budget", ["small", "full"])
def test_every_stated_arm_is_run(budget):
    settings = c21._settings(budget)
    run = {c21.arm(data, series) for data in settings for series in c21.selections(4)}
    for contrast in c21.STATED:
        assert contrast.terms.keys() <= run
    balanced = [each for each in c21.STATED if each.metric != "dead"]
    assert all(sum(each.terms.values()) == pytest.approx(0) for each in balanced)


def test_a_cell_gives_every_arm_its_metrics():
    found = c21.measure(Cell("varied", 0, TINY))
    for series in c21.selections(4):
        label = c21.arm("varied", series)
        for metric in (c21.METRIC, "L0", "dead", "correlation", "directions found"):
            assert f"{label} | {metric}" in found
        assert found[f"{label} | L0"] == pytest.approx(4, abs=0.5)
    assert 0 < found[f"varied: random | {c21.METRIC}"] < 1


def test_rows_of_one_length_have_no_correlation():
    rows = c21.load("constant", 0, 300)
    training = SAETraining(steps=1, batch=64, held_out=0.0)
    assert c21.trained(rows, TopK(k=4), 64, training)["correlation"] == 0.0
    assert len(rows.counts.unique()) == 1
    assert len(c21.load("varied", 0, 10).counts.unique()) > 3


def test_parts_share_the_directions_alone():
    rows = c21.load("zipf", 0, 200)
    assert not torch.equal(rows.validation, rows.test)
    assert torch.equal(rows.directions, c21.load("zipf", 0, 10).directions)
    assert not torch.equal(rows.directions, c21.load("zipf", 1, 10).directions)


def test_many_latents_are_trained_with_every_auxiliary_loss():
    rows = c21.load("varied", 0, 300)
    cell = Cell("varied", 0, {**TINY, "many": [128, 2]})
    found = c21._revived(rows, "varied", 4, cell)
    assert {name.split(", ")[1].split(" | ")[0] for name in found} == {"none", "auxk", "auxzipf"}
