"""Claim 17 and what claims 03 and 17 measure beyond accuracy."""

import pytest
import torch
from torch import nn

pytest.importorskip("sklearn")

from sparsecraft.lab.claims import beyond_accuracy as beyond
from sparsecraft.lab.claims import c03_random_pruning as c03
from sparsecraft.lab.claims import c17_model_soups as c17
from sparsecraft.lab.claims import digits, soup_runs
from sparsecraft.lab.claims.cells import Cell
from sparsecraft.lab.evidence.table import Row

DERIVED = ("soup", "tuned soup", "mean candidate", "best candidate", "ensemble")
TINY = {"epochs": 1, "pretraining": 1, "sparsity": 0.9, "models": 2}


def tiny(kind, tuning=((0.1, True),), **changed):
    settings = {"kind": kind, "tuning": [list(each) for each in tuning], **TINY, **changed}
    return Cell("run", 100, settings)


@pytest.mark.parametrize("budget", ["smoke", "small", "full"])
def test_the_grid_has_every_stated_arm_and_no_cell_twice(budget):
    cells = list(c17._grid(budget, 0))
    arms = [cell.arm for cell in cells]
    assert len(set(arms)) == len(arms)
    runs = {each.removeprefix("run of ") for each in arms}
    derived = {c17.arm(name) for name in DERIVED} if c17.arm("soup") in runs else set()
    for contrast in c17.STATED:
        assert contrast.terms.keys() <= runs | derived


def test_full_contains_small():
    def keys(budget):
        return {(c.arm, str(sorted(c.settings.items()))) for c in c17._grid(budget, 0)}

    assert keys("small") <= keys("full")


def test_rows_of_a_run_are_taken_apart():
    rows = [Row("run", 3, "soup, phase=3: OOD AUC, photographs", 0.5), Row("dense", 3, "NLL", 1.0)]
    assert soup_runs.spread(rows) == [Row("soup, phase=3", 3, "OOD AUC, photographs", 0.5), rows[1]]


@pytest.mark.slow
def test_a_run_gives_soup_and_candidates_with_exactly_the_same_weights():
    found = c17.measure(tiny("soup"))
    soup = soup_runs.arm("soup", models=2)
    assert found[f"{soup}: largest difference in weights"] == 0.0
    assert found[f"{soup}: weights"] == round(0.1 * 14288)
    for name in DERIVED:
        for metric in ("accuracy", "validation accuracy"):
            assert 0 <= found[f"{soup_runs.arm(name, models=2)}: {metric}"] <= 1
    assert {f"{soup_runs.arm('soup', phase, models=2)}: accuracy" for phase in (1, 2, 3)} <= set(
        found
    )


def test_the_rate_of_the_pair_is_the_candidates_and_the_tuned_soup_has_its_own(monkeypatch):
    scores = {0.1: (0.5, 0.9), 0.3: (0.6, 0.7), 1.0: (0.9, 0.95)}  # candidate, soup

    def phases(bench, model, outcome):
        rate = bench.asked.pop(0)
        candidate, soup = scores[rate]
        return {
            f"{bench.arm(name)}: {metric}": value
            for name, value in (("mean candidate", candidate), ("soup", soup))
            for metric in ("validation accuracy", "accuracy")
        }

    tuning = ((0.1, True), (0.3, True), (1.0, False))
    monkeypatch.setattr(soup_runs, "_phases", phases)
    bench = soup_runs.Bench(tiny("soup", tuning))
    bench.asked = [rate for rate, _ in tuning]
    found = soup_runs.soups(bench)
    assert found[f"{bench.arm('soup')}: learning rate"] == 0.3
    assert found[f"{bench.arm('tuned soup')}: learning rate"] == 1.0
    assert found[f"{bench.arm('tuned soup')}: accuracy"] == 0.95


def test_single_runs_choose_their_tuning_on_validation_and_have_every_phase():
    found = c17.measure(tiny("IMP", ((1e-6, True), (0.1, True))))
    name = soup_runs.arm("IMP")
    assert found[f"{name}: learning rate"] == pytest.approx(0.1)
    assert found[f"{name}: weights"] == round(0.1 * 14288)
    assert f"{soup_runs.arm('IMP', 1)}: accuracy" in found


def test_independent_runs_give_a_denser_average():
    found = c17.measure(tiny("IMP average", epochs=3))
    name = soup_runs.arm("IMP average", models=2)
    again = soup_runs.arm("IMP average, pruned again", models=2)
    assert found[f"{name}: weights"] > found[f"{again}: weights"] == round(0.1 * 14288)


def test_other_data_have_the_right_shape_range_and_grey_values():
    patches = beyond.photographs()
    assert patches.shape == (beyond.PATCHES, 1, 8, 8)
    assert 0 <= float(patches.min()) <= float(patches.max()) <= 1
    images = digits.load_digits(0).test.images
    other = beyond.permuted(images)
    assert torch.equal(other.flatten(1).sort(1).values, images.flatten(1).sort(1).values)
    assert not torch.equal(other, images)


def test_a_blind_network_is_at_chance_everywhere():
    class Blind(nn.Module):
        def forward(self, x):
            return torch.zeros(len(x), 10) + 0 * x.sum()

    test = digits.load_digits(0).test
    found = beyond.beyond_accuracy(Blind(), test)
    share = float((test.labels == 0).double().mean())
    assert found["OOD AUC, photographs"] == found["OOD AUC, permuted"] == 0.5
    assert found["ECE"] == pytest.approx(abs(share - 0.1), abs=1e-6)
    assert found["worst class"] == 0.0
    assert found["corrupted accuracy"] == pytest.approx(share)
    assert found["FGSM accuracy"] == pytest.approx(share)


def test_claim_03_measures_beyond_accuracy_at_the_widest_only_and_decides_as_before():
    wide = {c.arm for c in c03._grid("small", 0) if "beyond" in c.settings}
    assert wide == {c03.arm(s, 32) for s in ("dense", "erk", "uniform", "small dense")}
    plain = c03.measure(c03._cell("erk", 4, 100, epochs=1, rates=(0.1, 0.3)))
    more = c03.measure(c03._cell("erk", 4, 100, epochs=1, rates=(0.1, 0.3), beyond=True))
    assert {key: more[key] for key in plain} == plain
    assert set(more) - set(plain) >= {"ECE", "NLL", "OOD AUC, photographs", "corrupted accuracy"}
    assert all(contrast.metric == "accuracy" for contrast in c03.STATED)
