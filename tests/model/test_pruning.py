"""The host: what is asked is what is got, and nothing happens in silence."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sparsecraft import SparsityError, prune
from sparsecraft.core.errors import InvalidValue, MissingStatistic, NonFinite, UnknownName
from sparsecraft.methods.weights.wanda import Wanda
from sparsecraft.model.pruning import check


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8))


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x):
        return self.net(x)


DATA = [{"x": torch.randn(32, 16, generator=torch.Generator().manual_seed(2))}]
LABELLED = [{**DATA[0], "labels": torch.arange(32) % 8}]


@given(st.sampled_from(["magnitude", "global_magnitude", "random"]), st.floats(0, 0.95))
def test_asked_is_achieved_and_zeros_are_exact(method, sparsity):
    model = mlp()
    report = prune(model, method, sparsity=sparsity)
    zeros = sum(int((m.weight == 0).sum()) for m in model if isinstance(m, nn.Linear))
    total = 16 * 24 + 24 * 8
    assert zeros == round(report.sparsity * total)
    assert abs(report.sparsity - sparsity) <= 1 / total
    assert all("layer collapse" in note for note in report.notes)


def test_kept_weights_are_untouched():
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    report = prune(model, "magnitude", sparsity=0.5)
    for name, keep in report.mask.items():
        assert torch.equal(model.state_dict()[name], before[name] * keep)
    assert torch.equal(model[0].bias, before["0.bias"])


def test_two_ways_to_say_one_thing():
    one, two = Named(), Named()
    prune(one, "wanda", sparsity=0.6, calibration=DATA)
    prune(two, Wanda(sparsity=0.6), calibration=DATA)
    assert torch.equal(one.net[0].weight, two.net[0].weight)


def test_wanda_equals_a_hand_pruned_copy():
    model, by_hand = Named(), Named()
    prune(model, "wanda", sparsity=0.5, calibration=DATA)
    x = DATA[0]["x"]
    for layer in (by_hand.net[0], by_hand.net[2]):
        scores = layer.weight.abs() * x.square().mean(0).sqrt()
        drop = scores.argsort(1)[:, : layer.in_features // 2]
        with torch.no_grad():
            layer.weight.scatter_(1, drop, 0.0)
            x = torch.relu(layer(x))
    assert torch.equal(model.net[0].weight, by_hand.net[0].weight)
    assert torch.equal(model.net[2].weight, by_hand.net[2].weight)


def test_an_allocation_gives_every_layer_its_own_density():
    model = mlp()
    report = prune(model, "random", sparsity=0.8, allocation="erk")
    asked = {row.name: row.asked for row in report.rows}
    assert asked["2"] > asked["0"]
    for row in report.rows:
        assert row.achieved == pytest.approx(row.asked, abs=0.5 / row.numel)
    assert report.sparsity == pytest.approx(0.8, abs=2 / 576)


def test_the_seed_decides_everything_random():
    masks = []
    for seed in (0, 0, 1):
        masks.append(prune(mlp(), "random", seed=seed).mask)
    assert masks[0].similarity(masks[1]) == pytest.approx(1.0)
    assert masks[0].similarity(masks[2]) < 0.7


@pytest.mark.parametrize("method", ["snip", "grasp", "synflow"])
def test_gradient_methods_leave_the_model_s_other_state_alone(method):
    model = Named()
    model.net = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8))
    model.train()
    before = copy.deepcopy(model.state_dict())
    report = prune(model, method, sparsity=0.5, calibration=LABELLED * 2)
    assert report.sparsity == pytest.approx(0.5)
    for name in ("net.1.running_mean", "net.1.running_var", "net.1.weight", "net.0.bias"):
        assert torch.equal(model.state_dict()[name], before[name])


def test_what_was_left_out_is_in_the_report():
    model = mlp()
    report = prune(model, "magnitude", targets="0")
    assert {row["name"] for row in report.skipped} == {"0.bias", "2.weight", "2.bias"}
    assert report.to_json()["layers"][0]["name"] == "0"


def test_n_of_m_from_the_short_form():
    model = mlp()
    report = prune(model, "magnitude", pattern="1:4")
    assert report.sparsity == 0.75
    assert (model[0].weight.view(24, 4, 4) != 0).sum(-1).eq(1).all()


@pytest.mark.parametrize(
    ("method", "options", "error", "words"),
    [
        ("magnitude", {"sparsity": 1.0}, InvalidValue, "in [0, 1)"),
        ("magnitude", {"sparsity": 50}, InvalidValue, "write 0.5"),
        ("magnitude", {"sparsity": 0.6, "pattern": "2:4"}, InvalidValue, "contradicts"),
        ("magnitude", {"pattern": "2:5"}, InvalidValue, "multiple of 5"),
        ("wnada", {}, UnknownName, "'wanda'"),
        ("magnitude", {"sparsty": 0.5}, UnknownName, "'sparsity'"),
        ("magnitude", {"pattern": "2/4"}, UnknownName, "'2:4'"),
        ("wanda", {}, MissingStatistic, "--calibration"),
        ("snip", {}, MissingStatistic, "calibration"),
    ],
)
def test_errors_say_what_to_do_and_change_nothing(method, options, error, words):
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error) as caught:
        prune(model, method, **options)
    assert words in str(caught.value)
    assert isinstance(caught.value, SparsityError)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_weights_that_are_not_finite_are_named():
    model = mlp()
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
    with pytest.raises(NonFinite, match=r"2\.weight"):
        check(model, "magnitude")


def test_max_tokens_bounds_the_calibration():
    model = Named()
    report = prune(model, "wanda", calibration=DATA * 4, max_tokens=70)
    assert report.calibration_tokens == 64
    with pytest.raises(InvalidValue, match="max_tokens=0"):
        prune(Named(), "wanda", calibration=DATA, max_tokens=0)


def test_half_precision_weights_keep_their_dtype():
    model = Named().bfloat16()
    report = prune(model, "magnitude", sparsity=0.5)
    assert model.net[0].weight.dtype == torch.bfloat16
    assert report.sparsity == 0.5


@pytest.mark.parametrize("name", ["magnitude", "random", "snip", "wanda", "sparsegpt"])
def test_groups_of_a_convolution_run_along_its_input_channels(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3))
    batch = {"input": torch.randn(4, 8, 4, 4), "labels": torch.tensor([0, 1, 2, 0])}
    prune(model, name, pattern="1:4", targets="0", calibration=[batch])
    kept = (model[0].weight != 0).view(6, 2, 4, 3, 3).sum(2)
    assert (kept <= 1).all() and kept.sum() == 6 * 2 * 9


def test_too_few_input_channels_for_the_pattern():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
    with pytest.raises(InvalidValue, match="needs a multiple of 4 inputs, but the layer has 3"):
        prune(model, "magnitude", pattern="2:4")
