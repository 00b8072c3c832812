"""Scales as targets: which are taken, the table of everything else, and what is refused."""

from __future__ import annotations

import pytest
from torch import nn

from sparsecraft.core.errors import InvalidValue, NoMatch
from sparsecraft.model.scale_targets import scale_targets


def network():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3),
        nn.BatchNorm2d(6, affine=False), nn.GroupNorm(2, 6), nn.Conv2d(6, 5, 1), nn.BatchNorm2d(5),
    )  # fmt: skip


def test_scales_are_vectors_and_every_parameter_has_a_row():
    model = network()
    found = scale_targets(model)
    assert found.shapes == {"1": (4,), "7": (5,)}
    assert [target.parameter for target in found] == ["1.weight", "7.weight"]
    rows = {row["name"]: row for row in found.table()}
    assert set(rows) == {name for name, _ in model.named_parameters()}
    assert rows["1.weight"]["targeted"] and not rows["1.bias"]["targeted"]
    assert rows["5.weight"]["reason"] == "not the scale of a BatchNorm"  # of the GroupNorm


def test_layers_can_be_selected():
    assert list(scale_targets(network(), "7").shapes) == ["7"]
    assert list(scale_targets(network(), "!7").shapes) == ["1"]
    assert list(scale_targets(network(), "BatchNorm2d").shapes) == ["1", "7"]
    with pytest.raises(NoMatch, match="match no layer"):
        scale_targets(network(), "norm")


def test_frozen_scales_are_left_out_and_layers_in_evaluation_are_not():
    model = network()
    model[1].weight.requires_grad_(False)
    model[7].eval()
    found = scale_targets(model)
    assert list(found.shapes) == ["7"]
    assert {row["name"]: row["reason"] for row in found.table()}["1.weight"].startswith("frozen")
    model[7].weight.requires_grad_(False)
    with pytest.raises(NoMatch, match="let their weights train"):
        scale_targets(model)


def test_a_bare_normalisation():
    assert scale_targets(nn.BatchNorm1d(3)).shapes == {"weight": (3,)}


def test_networks_without_scales_are_refused():
    with pytest.raises(NoMatch, match="no BatchNorm layer"):
        scale_targets(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))
    with pytest.raises(InvalidValue, match="affine=True"):
        scale_targets(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False)))
