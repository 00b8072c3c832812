"""Weight Compander: the closed forms of two steps, folding, starts, decay, controls and errors."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from tests import models
from torch import nn

from sparsecraft import Sparsifier
from sparsecraft.core import catalog
from sparsecraft.core.companding import companding
from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.weight_statistics import weight_statistics
from sparsecraft.methods.weights.compander import WeightCompander
from sparsecraft.methods.weights.magnitude import Magnitude

FIXED = {"a": 0.5, "b": 0.25}
RATE, MOMENTUM, STEPS = 0.1, 0.9, 2


def network(dtype=torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def batch(dtype=torch.float64):
    draws = torch.Generator().manual_seed(1)
    return torch.randn(20, 6, generator=draws, dtype=dtype), torch.arange(20) % 3


def step(model, sparsifier, optimizer, x, y) -> None:
    optimizer.zero_grad()
    (nn.functional.cross_entropy(model(x), y) + sparsifier.loss()).backward()
    optimizer.step()


def trained(method, steps=5, model=None, decay=0.0):
    model = network() if model is None else model
    sparsifier = Sparsifier(model, method, total_steps=steps)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=decay)
    sparsifier.attach(optimizer)
    x, y = batch(next(model.parameters()).dtype)
    for _ in range(steps):
        step(model, sparsifier, optimizer, x, y)
    return model, sparsifier, optimizer


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.25), (0.2, 0.1), (2.0, 1.5)])
@pytest.mark.parametrize("learn", [False, True])
def test_two_momentum_steps_in_closed_form(a, b, learn):
    """One linear layer with squared error, every gradient written out by hand."""
    x, y = batch()[0][:, :4], torch.randn(20, 2, dtype=torch.float64)
    layer = nn.Linear(4, 2, bias=False).double()
    v, scales, total = layer.weight.detach().clone(), [a, b], 0.01
    method = WeightCompander(a=a, b=b, learn=learn, positive="clamp", rate_scale=total)
    sparsifier = Sparsifier(layer, method, total_steps=STEPS)
    optimizer = torch.optim.SGD(layer.parameters(), lr=RATE, momentum=MOMENTUM)
    sparsifier.attach(optimizer)
    velocity, scale_velocity = torch.zeros_like(v), [0.0, 0.0]
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = (layer(x) - y).square().sum() / 2
        loss.backward()
        a, b = scales
        w = a * torch.atan(v / b)
        residual = x @ w.T - y
        of_w = residual.T @ x
        of_v = of_w * (a / b) / (1 + (v / b) ** 2)
        of_a = float((of_w * torch.atan(v / b)).sum())
        of_b = float((of_w * -a * v / (b**2 + v**2)).sum())
        torch.testing.assert_close(loss, residual.square().sum() / 2, rtol=0, atol=1e-10)
        torch.testing.assert_close(layer.weight.grad, of_v, rtol=0, atol=1e-10)
        if learn:
            raw = sparsifier.layers["weight"].parameters
            assert float(raw["a"].grad) == pytest.approx(of_a, abs=1e-10)
            assert float(raw["b"].grad) == pytest.approx(of_b, abs=1e-10)
        optimizer.step()
        velocity = MOMENTUM * velocity + of_v
        v = v - RATE * velocity
        if learn:
            for i, gradient in enumerate((of_a, of_b)):
                scale_velocity[i] = MOMENTUM * scale_velocity[i] + gradient
                scales[i] -= RATE * total * scale_velocity[i]
        torch.testing.assert_close(layer.weight.detach(), v, rtol=0, atol=1e-10)
    found = method.constants(sparsifier.layers["weight"])
    assert [float(each.detach()) for each in found] == pytest.approx(scales, abs=1e-10)


@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize("function", ["arctan", "tanh", "softsign", "algebraic", "mu-law", "power"])
def test_the_folded_model_is_the_trained_one_bit_by_bit(function, learn):
    model, sparsifier, _ = trained(WeightCompander(function=function, learn=learn))
    x, _ = batch()
    keys = list(model.state_dict())
    with torch.no_grad():
        before = model(x)
        raw = model[0].weight.clone()
        report = sparsifier.finalize()
        assert torch.equal(model(x), before)
    assert list(model.state_dict()) == keys
    assert not torch.equal(model[0].weight, raw)
    assert report.sparsity == 0
    assert report.form == "plain"
    assert not report.notes


def test_biases_and_norms_are_left_alone():
    model = models.tiny_cnn().train()
    sparsifier = Sparsifier(model, WeightCompander(**FIXED), total_steps=1)
    names = {target.parameter for target in sparsifier.targets}
    assert names == {n for n, p in model.named_parameters() if p.dim() > 1}
    before = {n: p.clone() for n, p in model.named_parameters() if n not in names}
    sparsifier.finalize()
    assert all(torch.equal(model.get_parameter(n), p) for n, p in before.items())


def test_a_preserving_start_keeps_the_function():
    model = network()
    x, _ = batch()
    before = model(x)
    sparsifier = Sparsifier(model, WeightCompander(init="preserve"), total_steps=1)
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-12)
    assert [float(layer.state["clipped"]) for layer in sparsifier.layers.values()] == [0, 0]


def test_a_preserving_start_clips_and_counts():
    model = nn.Sequential(nn.Linear(4, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.1, -0.1, 0.2, 9.0]]))
    method = WeightCompander(**FIXED, init="preserve", clip_tolerance=0.25)
    sparsifier = Sparsifier(model, method, total_steps=1)
    assert float(sparsifier.layers["0"].state["clipped"]) == 0.25
    found = sparsifier.export_state_dict()["0.weight"][0].tolist()
    assert found == pytest.approx([0.1, -0.1, 0.2, 0.95 * 0.5 * math.pi / 2])
    with pytest.raises(InvalidValue, match=r"25.0% of the weights lie beyond 0.746.*larger a"):
        Sparsifier(nn.Sequential(copy.deepcopy(model)), WeightCompander(
            **FIXED, init="preserve", clip_tolerance=0.2), total_steps=1)  # fmt: skip


def test_a_standard_start_is_steeper_by_the_slope():
    model = network()
    small = model[0].weight.detach().clone() * 1e-4
    with torch.no_grad():
        model[0].weight.copy_(small)
    sparsifier = Sparsifier(model, WeightCompander(**FIXED), total_steps=1)
    torch.testing.assert_close(sparsifier.export_state_dict()["0.weight"], 2 * small)


def test_constants_scale_with_each_layer():
    model = network()
    method = WeightCompander(alpha=3.0, beta=2.0)
    layers = Sparsifier(model, method, total_steps=1).layers
    for name in ("0", "2"):
        deviation = float(model.get_submodule(name).weight.detach().std(correction=0))
        a, b = method.constants(layers[name])
        assert (float(a), float(b)) == pytest.approx((3 * deviation, 2 * deviation))
    assert float(layers["0"].state["a"]) != float(layers["2"].state["a"])


@pytest.mark.parametrize("positive", ["exp", "softplus", "clamp"])
def test_learnt_constants_start_where_asked_and_train(positive):
    method = WeightCompander(**FIXED, learn=True, positive=positive, rate_scale=0.1)
    before = method.constants(Sparsifier(network(), method, total_steps=1).layers["0"])
    assert [float(each.detach()) for each in before] == pytest.approx([0.5, 0.25])
    _, sparsifier, _ = trained(method)
    after = method.constants(sparsifier.layers["0"])
    assert all(float(each.detach()) > 0 for each in after)
    assert [float(each.detach()) for each in after] != pytest.approx([0.5, 0.25])


def test_a_floored_constant_can_rise_again():
    method = WeightCompander(**FIXED, learn=True, positive="clamp")
    layer = Sparsifier(network(), method, total_steps=1).layers["0"]
    with torch.no_grad():
        layer.parameters["a"].fill_(-1.0)
    a, _ = method.constants(layer)
    a.backward()
    assert float(a.detach()) == pytest.approx(1e-4)
    assert float(layer.parameters["a"].grad) == 1


def test_constants_stay_positive_under_a_huge_rate():
    for positive in ("exp", "softplus", "clamp"):
        method = WeightCompander(**FIXED, learn=True, positive=positive, rate_scale=50.0)
        _, sparsifier, _ = trained(method, steps=2)
        for layer in sparsifier.layers.values():
            assert all(float(each.detach()) >= 0 for each in method.constants(layer))


@pytest.mark.parametrize(("granularity", "count"), [("layer", 4), ("global", 2)])
def test_layers_share_a_pair_or_have_their_own(granularity, count):
    method = WeightCompander(learn=True, granularity=granularity, rate_scale=0.1)
    _, sparsifier, _ = trained(method)
    assert len(list(sparsifier.parameters())) == count
    first, second = (sparsifier.layers[name].parameters["a"] for name in ("0", "2"))
    assert (first is second) == (granularity == "global")


def test_decay_acts_on_v_or_on_w():
    """One step without a task: w of the decayed v against the gradient of decay on w."""
    results = {}
    for method, decay in (
        (WeightCompander(**FIXED), 0.1),
        (WeightCompander(**FIXED, decay_on="w", weight_decay=0.1), 0.0),
    ):
        model = nn.Sequential(nn.Linear(6, 3, bias=False)).double()
        with torch.no_grad():
            model[0].weight.fill_(0.3)
        sparsifier = Sparsifier(model, method, total_steps=1)
        sgd = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=decay)
        sparsifier.attach(sgd)
        (0 * model(batch()[0]).sum()).backward()
        sgd.step()
        results[method.decay_on] = float(model[0].weight[0, 0].detach())
    w, slope = 0.5 * math.atan(1.2), 2 / (1 + 1.2**2)
    assert results["v"] == pytest.approx(0.3 - 0.1 * 0.3)
    assert results["w"] == pytest.approx(0.3 - 0.1 * w * slope)


def test_masked_weights_are_zero_in_w():
    method = WeightCompander(source=Magnitude(sparsity=0.5), learn=True)
    model, sparsifier, _ = trained(method, decay=0.01)
    with sparsifier.exported():
        sparsifier.mask.verify(dict(model.named_parameters()))
    report = sparsifier.finalize()
    assert report.sparsity == 0.5
    assert int((model[0].weight == 0).sum()) == 24


def test_saturation_counts_flat_weights():
    method = WeightCompander(**FIXED)
    model = nn.Sequential(nn.Linear(4, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0, 0.1, 1.5, 2.0]]))
    sparsifier = Sparsifier(model, method, total_steps=1)
    # The slope 2 / (1 + (v / 0.25)^2) is 0.054 at 1.5 and 0.031 at 2.
    assert method.saturation(sparsifier.weights()["0"], sparsifier.layers["0"]) == 0.25


def test_a_resumed_training_is_the_same():
    method = WeightCompander(learn=True, rate_scale=0.1)
    whole, _, _ = trained(method, steps=6)
    model = network()
    sparsifier = Sparsifier(model, method, total_steps=6)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
    sparsifier.attach(optimizer)
    x, y = batch()
    for _ in range(3):
        step(model, sparsifier, optimizer, x, y)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), sparsifier.state_dict()))
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    sparsifier = Sparsifier(model, method, total_steps=6)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
    sparsifier.attach(optimizer)
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    sparsifier.load_state_dict(saved[2])
    for _ in range(3):
        step(model, sparsifier, optimizer, x, y)
    for mine, theirs in zip(model.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_bfloat16_weights_keep_their_type_and_their_constants_do_not():
    model, sparsifier, _ = trained(
        WeightCompander(learn=True), model=network(torch.bfloat16), steps=2
    )
    assert sparsifier.layers["0"].parameters["a"].dtype == torch.float32
    sparsifier.finalize()
    assert model[0].weight.dtype == torch.bfloat16


def test_companding_thins_tails_and_the_mass_near_zero():
    """The mechanism: of normal v, fewer are near zero and the tails are lighter."""
    torch.manual_seed(0)
    v = torch.randn(200_000, dtype=torch.float64)
    figures = {
        name: weight_statistics(companding(name).value(v, 2.0, 1.0), near=0.1)
        for name in ("arctan", "power")
    }
    normal = weight_statistics(v, near=0.1)
    assert figures["arctan"].kurtosis < 2 < normal.kurtosis < 9 < figures["power"].kurtosis
    assert figures["arctan"].near_zero < normal.near_zero < figures["power"].near_zero


def test_settings_survive_json():
    method = WeightCompander(a=0.4, b=0.2, learn=True, source=Magnitude(sparsity=0.5))
    written = json.loads(json.dumps(catalog.describe(method)))
    assert catalog.restore(written) == method


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"a": 0.0, "b": 0.1}, InvalidValue, r"a=0.0 is not allowed: it must be positive"),
        ({"a": 0.1, "b": -1.0}, InvalidValue, r"b=-1.0 is not allowed"),
        ({"alpha": math.inf}, InvalidValue, r"alpha=inf is not allowed"),
        ({"a": 0.1}, InvalidValue, r"give both constants"),
        ({"a": 0.1, "b": 0.1}, InvalidValue, r"does not expand.*Choose a > b.*allow_contraction"),
        ({"function": "atan"}, UnknownName, r"Did you mean .*arctan"),
        ({"init": "copy"}, InvalidValue, r"init='copy' is not allowed: give 'standard' or"),
        ({"granularity": "row"}, InvalidValue, r"granularity='row'"),
        ({"positive": "abs"}, InvalidValue, r"positive='abs'"),
        ({"decay_on": "u"}, InvalidValue, r"decay_on='u'"),
        ({"weight_decay": 0.1}, InvalidValue, r"belongs to the optimiser"),
        ({"clip_tolerance": 2.0}, InvalidValue, r"it is a share"),
        ({"rate_scale": 0.0}, InvalidValue, r"rate_scale=0.0"),
    ],
)
def test_settings_that_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        WeightCompander(**options)


def test_contraction_can_be_meant():
    assert WeightCompander(a=0.1, b=0.2, allow_contraction=True).ratio == 0.5
    assert WeightCompander(function="power", a=0.1, b=0.2).ratio == 0.5


def test_weights_that_cannot_be_companded():
    equal = nn.Sequential(nn.Linear(4, 4))
    nn.init.zeros_(equal[0].weight)
    with pytest.raises(InvalidValue, match="all equal"):
        Sparsifier(equal, "weight_compander", total_steps=1)
    Sparsifier(equal, WeightCompander(**FIXED), total_steps=1)
    whole = nn.Sequential(nn.Linear(4, 4))
    whole[0].weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(InvalidValue, match=r"of type torch.int8.*floating-point"):
        Sparsifier(whole, WeightCompander(**FIXED), total_steps=1)


def test_companding_twice_is_refused():
    model = network()
    Sparsifier(model, WeightCompander(**FIXED), total_steps=1)
    with pytest.raises(InvalidValue, match="under another Sparsifier"):
        Sparsifier(model, WeightCompander(**FIXED), total_steps=1)
