"""The physically smaller model: dead units go, and what is left computes the same."""

import copy

import pytest
import torch
from torch import nn

from sparsecraft.core import catalog
from sparsecraft.core.mask import Mask
from sparsecraft.lab.compact_form import compact_form, dead_units, difference, removes_units
from sparsecraft.model.units import find_units

STATIC = catalog.build("static", sparsity=0.5)
NONE = Mask({})


class Plain(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


def mlp(activation=nn.ReLU):
    torch.manual_seed(0)
    return Plain(
        nn.Linear(5, 8), activation(), nn.Linear(8, 6), activation(), nn.Linear(6, 3)
    ).eval()


def inputs(count=4):
    return {"x": torch.randn(count, 5, generator=torch.Generator().manual_seed(1))}


@torch.no_grad()
def test_units_that_nobody_reads_or_that_give_nothing_go():
    model = mlp()
    first, second = model.layers[0], model.layers[2]
    first.weight[0] = first.bias[0] = 0  # gives nothing
    second.weight[:, 1] = 0  # nobody reads it
    form = compact_form(model, STATIC, NONE, inputs())
    assert form.keep["layers.0"].tolist() == [False, False] + [True] * 6
    assert form.units == (6, 8)
    assert form.difference < 1e-6
    assert form.parameters == form.kept == 5 * 6 + 6 + 6 * 6 + 6 + 6 * 3 + 3
    assert difference(model, form.model, {"x": torch.randn(9, 5)}) < 1e-6
    assert first.weight.shape == (8, 5)


@torch.no_grad()
def test_a_constant_is_folded_into_what_reads_it():
    model = mlp(nn.Sigmoid)
    model.layers[0].weight[:3] = 0  # sigmoid(bias) for ever
    form = compact_form(model, STATIC, NONE, inputs())
    assert form.units == (5, 8)
    assert difference(model, form.model, {"x": torch.randn(9, 5)}) < 1e-5


@torch.no_grad()
def test_zeros_that_still_give_something_are_constants_like_any_other():
    model = mlp(nn.Sigmoid)
    model.layers[0].weight[:3] = model.layers[0].bias[:3] = 0  # sigmoid(0) is a half
    form = compact_form(model, STATIC, NONE, inputs())
    assert form.units == (5, 8)
    assert difference(model, form.model, {"x": torch.randn(9, 5)}) < 1e-5


@torch.no_grad()
def test_a_constant_that_no_reader_can_take_stays():
    torch.manual_seed(0)
    reader = nn.ConvTranspose2d(4, 2, 3)
    model = Plain(nn.Conv2d(1, 4, 3), nn.Sigmoid(), reader).eval()
    model.layers[0].weight[:2] = 0
    reader.weight[3] = 0  # nobody reads the last one
    form = compact_form(model, STATIC, NONE, {"x": torch.randn(2, 1, 6, 6)})
    assert form.keep["layers.0"].tolist() == [True, True, True, False]


@torch.no_grad()
def test_a_layer_keeps_a_unit_and_a_model_without_dead_units_has_no_form():
    model = mlp()
    assert compact_form(model, STATIC, NONE, inputs()) is None
    model.layers[2].weight.zero_()
    model.layers[2].bias.zero_()
    form = compact_form(model, STATIC, NONE, inputs())
    assert form.model.layers[2].out_features == 1
    assert form.difference < 1e-6


@torch.no_grad()
def test_masks_of_what_is_left_come_along():
    model = mlp()
    keep = torch.ones(8, 5, dtype=torch.bool)
    keep[0] = False
    keep[1, 2] = keep[4, 0] = False
    whole = torch.ones(6, 8, dtype=torch.bool)
    mask = Mask({"layers.0.weight": keep, "layers.2.weight": whole})
    mask.apply_(dict(model.named_parameters()))
    model.layers[0].bias[0] = 0
    form = compact_form(model, STATIC, mask, inputs())
    assert list(form.mask) == ["layers.0.weight"]
    assert torch.equal(form.mask["layers.0.weight"], keep[1:])
    form.mask.verify(dict(form.model.named_parameters()))
    assert form.kept == form.parameters - 2


def test_only_matrices_that_are_zero_make_a_constant():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    with torch.no_grad():
        net[0].weight[:2].zero_()
        net[0].bias[0] = 0
        net[2].weight[0, 2] = 0
    dead = dead_units(net, find_units(net))["0"]
    assert dead.silent.tolist() == [True, False, False]
    assert dead.constant.tolist() == [True, True, False]
    assert dead.unread.tolist() == [False, False, True]


def convolutional():
    torch.manual_seed(0)
    net = Plain(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4),
        nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4 * 4, 2),
    )  # fmt: skip
    with torch.no_grad():
        for norm in (net.layers[1], net.layers[4]):
            norm.bias.uniform_(0.2, 0.4)
            norm.running_mean.normal_()
    return net.eval()


def scales(model):
    keep = torch.tensor([True, False, True, True, False, True])
    with torch.no_grad():
        model.layers[1].weight[~keep] = 0
    return Mask({"layers.1.weight": keep})


def test_channels_go_by_their_scales_and_their_shifts_are_dropped_or_folded_in():
    model = convolutional()
    mask = scales(model)
    picture = {"x": torch.randn(3, 1, 8, 8)}
    method = catalog.build("network_slimming", sparsity=0.3)
    dropped = compact_form(model, method, mask, picture)
    assert dropped.model.layers[0].out_channels == 4
    assert dropped.units == (4, 6)
    assert dropped.difference > 1e-3
    assert "shifts of removed channels are dropped" in dropped.note
    absorbed = compact_form(model, method, mask, picture, absorb_bias=True)
    assert absorbed.difference < 1e-5
    assert "folded into" in absorbed.note
    assert len(absorbed.mask) == 0
    whole = Mask({"layers.1.weight": torch.ones(6, dtype=torch.bool)})
    assert compact_form(model, method, whole, picture) is None


class Residual(nn.Module):
    """Two normalised branches that are added, so that their channels are tied."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 4, 3)
        self.norm_one, self.norm_two = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.head(torch.relu(self.norm_one(self.one(x)) + self.norm_two(self.two(x))))


def test_tied_channels_go_only_where_all_agree():
    model = Residual().eval()
    mask = Mask(
        {
            "norm_one.weight": torch.tensor([False, False, True, True]),
            "norm_two.weight": torch.tensor([True, False, False, True]),
        }
    )
    mask.apply_(dict(model.named_parameters()))
    method = catalog.build("network_slimming", sparsity=0.5)
    form = compact_form(model, method, mask, {"x": torch.randn(2, 1, 6, 6)})
    assert form.model.head.in_channels == 3
    assert form.difference < 1e-5
    form.mask.verify(dict(form.model.named_parameters()))


@pytest.mark.parametrize(
    ("name", "options", "whole"),
    [
        ("network_slimming", {}, True),
        ("mask_sparsity", {}, True),
        ("wgsef", {}, True),
        ("wgsef", {"groups": "unstructured"}, False),
        ("group_iht", {"groups": "filter"}, True),
        ("rigl", {"sparsity": 0.5}, False),
    ],
)
def test_which_methods_remove_whole_units(name, options, whole):
    assert removes_units(catalog.build(name, **options)) is whole


def test_the_model_is_left_as_it_was():
    model = convolutional()
    mask = scales(model)
    before = copy.deepcopy(model.state_dict())
    compact_form(
        model,
        catalog.build("network_slimming"),
        mask,
        {"x": torch.randn(2, 1, 8, 8)},
        absorb_bias=True,
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
