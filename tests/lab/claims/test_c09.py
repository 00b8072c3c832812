"""Claim 9: its sweeps, the reading between strengths, and that every stated arm is measured."""

import math

import pytest
import torch

from sparsecraft.lab.claims import c09_beyond_l1 as c09
from sparsecraft.lab.claims import dictionary_sweeps
from sparsecraft.lab.claims.cells import Cell
from sparsecraft.lab.claims.dictionary_baselines import left_by_components, left_by_pursuit
from sparsecraft.lab.claims.dictionary_sweeps import work_of
from sparsecraft.lab.claims.natural_images import PICTURES, natural_patches


def arms(found):
    """Arm to its metrics."""
    result = {}
    for key, value in found.items():
        name, _, metric = key.rpartition(" | ")
        result.setdefault(name, {})[metric] = value
    return result


def test_errors_are_read_between_strengths_on_logarithmic_axes():
    points = [(20.0, 0.05), (2.0, 0.4), (8.0, 0.1)]
    assert c09.at_active(points, 4.0) == (pytest.approx(math.log(0.2)), False)
    assert c09.at_active(points, 2.0) == (pytest.approx(math.log(0.4)), False)
    assert c09.at_active(points, 1.0) == (pytest.approx(math.log(0.8)), True)
    assert c09.at_active(points, 40.0)[1]


def test_a_cell_gives_every_stated_arm_of_its_method():
    found = {}
    for series, settings in c09._settings("smoke").items():
        if settings["method"] in ("soft", "cel0"):
            found |= arms(c09.measure(Cell(series, 0, settings)))
    for contrast in c09.STATED:
        assert contrast.terms.keys() <= found.keys()
        assert sum(contrast.terms.values()) == 0
    for name in contrast.terms:
        assert math.exp(found[name][c09.METRIC]) == pytest.approx(found[name][c09.CURVE])
    assert {"dead atoms", "Gabor share", "median circular variance"} <= found[
        c09.arm("cel0", c09.SPARSE)
    ].keys()
    assert c09.arm("soft debiased", c09.SPARSE) in found


def test_baselines_select_exactly_and_better_with_more():
    settings = c09._settings("smoke")["baselines"]
    found = arms(c09.measure(Cell("baselines", 0, settings)))
    for series in ("random dictionary OMP", "scikit-learn dictionary OMP", "PCA",
                   "AbsTopK dictionary OMP"):  # fmt: skip
        few, many = (found[c09.arm(series, active)][c09.CURVE] for active in c09.PURSUED)
        assert 0 < many < few < 1


def test_pursuit_in_orthogonal_atoms_keeps_the_largest():
    rows = torch.tensor([[3.0, -2.0, 1.0], [0.0, 1.0, 4.0]])
    spread = float((rows - rows.mean(0)).square().sum())
    assert left_by_pursuit(2 * torch.eye(3), rows, 1) == pytest.approx((4 + 1 + 1) / spread)


def test_principal_directions_come_from_the_training_rows():
    train = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    rows = torch.tensor([[1.0, 2.0], [-1.0, -2.0]])
    assert left_by_components(train, rows, 1) == pytest.approx(8 / 10)
    assert left_by_components(train, rows, 2) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("budget", ["smoke", "small", "full"])
def test_the_larger_dictionary_has_four_times_the_atoms_as_the_text_says(budget):
    settings = c09._settings(budget)
    assert settings[c09.MANY]["atoms"] == 4 * settings[c09.FEW]["atoms"]
    text = " ".join(f"{each.stated.text} {each.stated.unit}" for each in c09.STATED)
    assert "four times the atoms" in text
    assert not {"24", "48", "64", "256", "500", "2000"} & set(text.split())


def test_the_small_budget_is_what_was_stated():
    settings = c09._settings("small")
    assert {each["batches"] for each in settings.values()} == {150}
    assert [settings[name]["atoms"] for name in (c09.FEW, "cel0", c09.MANY)] == [64, 128, 256]
    assert work_of(settings["cel0"]) == {"learning_rate": 2e-2, "batches": 150, "batch_size": 200}
    for name, strengths in c09.STRENGTHS.items():
        assert c09.strengths_of(name, settings[name]) == strengths


def test_the_full_budget_runs_with_the_settings_that_it_declares(monkeypatch):
    asked = []
    monkeypatch.setattr(dictionary_sweeps, "fitted", lambda rows, **options: asked.append(options))
    declared = c09.CLAIM.full_scale.hyperparameters
    for series, settings in c09._settings("full").items():
        if settings["method"] is not None:
            dictionary_sweeps.learned(torch.ones(1, 256), settings["method"], 0.27, settings, 3)
            assert {name: asked[-1][name] for name in declared} == declared
            assert asked[-1]["measure"] == "batch"
            assert asked[-1]["n_components"] == settings["atoms"]
            falls = settings["method"] == "cel0" and series != c09.FEW
            assert asked[-1]["decay"] == falls
    assert len(asked) == 6
    work = work_of(c09._settings("full")["baselines"])
    assert work == {name: declared[name] for name in work}
    assert len(work) == 3


def test_pictures_are_held_out_in_turn():
    one, two = (natural_patches(seed, rows=500, held_out=200) for seed in (0, 1))
    assert one.train.shape == (500, 64)
    assert one.test.shape == one.validation.shape == (200, 64)
    assert float(one.train.sum(1).abs().max()) < 1e-4
    assert not torch.equal(one.test, two.test)
    again = natural_patches(len(PICTURES) // 2, rows=10, held_out=200)
    assert float(again.test.var()) == pytest.approx(float(one.test.var()), rel=0.5)
    assert float(one.train.var()) == pytest.approx(0.1, rel=0.2)
