"""Claim 18: its grid, its choice on validation, the pair that shares a mask, and the ResNet."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("sklearn")

from sparsecraft.lab.claims import c18_mask_sparsity as c18
from sparsecraft.lab.claims import channel_trainings, digits
from sparsecraft.lab.evidence.table import Row
from sparsecraft.model.channel_choice import channel_mask
from sparsecraft.model.channels import from_scratch, prune_channels


def keys(budget):
    return [(c.arm, str(sorted(c.settings.items()))) for c in c18._grid(budget, 0)]


def test_the_grid_has_every_stated_arm_and_no_cell_twice():
    for budget in ("small", "full"):
        arms = [name for name, _ in keys(budget)]
        assert len(set(arms)) == len(arms)
        for contrast in c18.STATED:
            series = {name.partition(", strength=")[0] for name in arms}
            assert contrast.terms.keys() <= {*arms, *map(c18.best, series)}
    assert set(keys("small")) <= set(keys("full"))


def test_the_best_strength_is_that_of_validation_not_of_the_test():
    rows = []
    for strength, validation, test in ((0.1, 0.9, 0.5), (0.3, 0.8, 0.99)):
        name = c18.arm("masked L1", strength)
        rows += [Row(name, 7, "validation accuracy", validation), Row(name, 7, "accuracy", test)]
    found = {row.metric: row.value for row in c18._at_their_best([*rows, Row("dense", 7, "x", 1)])}
    assert found == {"accuracy": 0.5, "strength": 0.1}


def test_both_arms_have_one_mask_and_press_on_different_channels():
    phases = channel_trainings.Phases(1, 2, 1)
    data = digits.load_digits(0)
    pressed = {}
    for series in ("global L1", "masked L1", "random channels"):
        cell = c18._cell(series, 0.1, 0, phases=phases)
        pressed[series] = c18._pressed(cell, 0.1, data)
    masks = {series: mask for series, (_, mask) in pressed.items()}
    assert masks["global L1"] == masks["masked L1"] != masks["random channels"]
    assert all(mask.kept == 30 for mask in masks.values())
    scales = {
        series: channel_trainings.scale_figures(model, masks["masked L1"])["kept scale"]
        for series, (model, _) in pressed.items()
    }
    assert scales["masked L1"] > scales["global L1"] + 0.1
    before = channel_trainings.baseline("digits", 0, 1)
    twin = channel_trainings.baseline("digits", 0, 1)
    assert before is twin and bool((before[1].weight > 0.5).all())  # the shared one is untouched


def test_the_resnet_is_pruned_through_its_residuals():
    networks = pytest.importorskip("sparsecraft.lab.tasks.networks")
    pytest.importorskip("transformers")
    resnet = networks.small_resnet(channels=1, classes=5)
    model = from_scratch(channel_trainings.Logits(resnet), 3).eval()
    images = torch.linspace(-1, 1, 2 * 32 * 32).view(2, 1, 32, 32)
    mask = channel_mask(model, "ratio", sparsity=0.5, score="filter norm", example_input=images)
    with torch.no_grad():
        for name, keep in mask.items():
            model.get_submodule(name).weight[~keep] = 0
        smaller, index_map = prune_channels(model, mask, absorb_bias=True, example_input=images)
        assert smaller.state_dict().keys() == model.state_dict().keys()
        torch.testing.assert_close(smaller(images), model(images), atol=1e-5, rtol=0)
    assert index_map.report.parameters_after < 0.5 * index_map.report.parameters_before
    figures = channel_trainings.cost_figures(model, smaller, images)
    assert figures["FLOPs removed"] > 0.5
