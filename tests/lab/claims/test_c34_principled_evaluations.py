"""Claim 34: every stated arm is measured, by the same edits, chosen on validation."""

import pytest
import torch

from sparsecraft.domains.interpretability import ioi, ioi_model
from sparsecraft.lab.claims import c34_principled_evaluations as c34
from sparsecraft.lab.claims import ioi_bench
from sparsecraft.lab.claims.cells import Cell, own_arms
from sparsecraft.lab.evidence.table import Row


@pytest.fixture(scope="module")
def found():
    settings = {**c34._settings("smoke"), "kinds": {"topk": [4, 8]}, "sae_steps": 5}
    settings |= {"model_steps": 3, "training": 600, "evaluated": 60}
    toys = c34.measure(Cell("toys", 0, {"toy steps": 2}))
    return c34.measure(Cell("all arms", 0, settings)) | toys


def test_every_stated_arm_is_measured(found):
    for contrast in c34.STATED:
        for arm in contrast.terms:
            assert f"{arm} | {contrast.metric}" in found
    compared = [sum(contrast.terms.values()) for contrast in c34.STATED]
    assert compared == pytest.approx([0, 0, 0, 0, 1])
    # One latent for a value would do, so what is judged is how many there are beyond it.
    assert c34.STATED[-1].constant == -1


def test_the_best_is_chosen_for_each_stated_metric_by_itself():
    """One autoencoder is the best by one metric on validation, another by another."""
    edits = {ioi_bench.EQUAL_NUMBER: 0.9, ioi_bench.EQUAL_WEIGHT: 0.2, ioi_bench.INSUFFICIENCY: 0.5}
    weight = {
        ioi_bench.EQUAL_NUMBER: 0.1,
        ioi_bench.EQUAL_WEIGHT: 0.8,
        ioi_bench.INSUFFICIENCY: 0.4,
    }
    whole = {ioi_bench.EQUAL_NUMBER: 0.0, ioi_bench.EQUAL_WEIGHT: 0.0, ioi_bench.INSUFFICIENCY: 0.1}
    tried = []
    for place, validation in enumerate((edits, weight, whole)):
        test = dict.fromkeys((*validation, ioi_bench.SUFFICIENCY, "L0"), 10.0 + place)
        tried.append((validation, test))
    best = ioi_bench.best_of(tried)
    assert best == {
        ioi_bench.EQUAL_NUMBER: 10,
        ioi_bench.EQUAL_WEIGHT: 11,
        ioi_bench.INSUFFICIENCY: 12,
        ioi_bench.SUFFICIENCY: 12,
        "L0": 10,
    }


def test_every_contrast_of_autoencoders_is_chosen_by_its_own_metric():
    stated = {contrast.metric for contrast in c34.STATED if c34.BEST in contrast.terms}
    assert stated == ioi_bench.CHOICES.keys()


def test_a_single_kind_is_the_best(found):
    best = {k: v for k, v in found.items() if k.startswith(f"{c34.BEST} | ")}
    assert len(best) > 10
    for key, value in best.items():
        assert found[key.replace(c34.BEST, "topk")] == value


def test_floor_and_control_stand_beside(found):
    assert f"{c34.FLOOR} | {ioi_bench.EQUAL_NUMBER}" in found
    assert f"{c34.RANDOM} | {ioi_bench.SUFFICIENCY}" in found
    for arm in (c34.RANDOM, c34.BEST, c34.SUPERVISED):
        distance = abs(1 - found[f"{arm} | {ioi_bench.SUFFICIENCY}"])
        assert found[f"{arm} | {ioi_bench.INSUFFICIENCY}"] == pytest.approx(distance)
    assert 0 <= found[f"{c34.FLOOR} | {ioi_bench.EQUAL_NUMBER}"] <= 1


def test_rows_bear_the_arms_name():
    (row,) = own_arms([Row("all arms", 3, "topk | sufficiency", 0.5)])
    assert (row.arm, row.seed, row.metric, row.value) == ("topk", 3, "sufficiency", 0.5)


def test_toys_have_five_seeds_where_models_have_fewer():
    class Kept:
        def rows(self, measure, cells):
            self.cells = cells
            return []

    for budget, seeds, expected in (
        ("small", [0, 1, 2], [0, 1, 2, 3, 4]),
        ("small", [7], [7, 8, 9, 10, 11]),
        ("full", list(range(6)), list(range(6))),
        ("smoke", [0], [0]),
    ):
        kept = Kept()
        c34.run(budget, seeds, kept)
        by_arm = {arm: [c.seed for c in kept.cells if c.arm == arm] for arm in ("all arms", "toys")}
        assert by_arm == {"all arms": seeds, "toys": expected}


def test_every_kind_has_as_many_settings():
    assert {len(values) for _, values in c34.KINDS.values()} == {3}
    for budget in ("small", "full"):
        assert c34._settings(budget)["kinds"].keys() == c34.KINDS.keys()


def test_parts_share_no_prompts_draws_and_change_the_receiver_alone():
    model = ioi_model.IOIModel(ioi_model.ModelSize(), seed=0)
    bench = ioi_bench.prepared(model, 0, 40, 20)
    base, other = ioi.halves(0)
    for part in (bench.validation, bench.test):
        assert bool(torch.isin(part.given.io, base).all())
        assert bool(torch.isin(part.new, other).all())
        assert part.x.shape == part.x_changed.shape == (20, 64)
    assert not torch.equal(bench.validation.given.tokens, bench.test.given.tokens)
    torch.testing.assert_close(bench.test.says(bench.test.x), bench.test.says(None))
