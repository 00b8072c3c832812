"""Weights that train densely under a mask made anew in every forward pass (STE and SR-STE)."""

import json

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sparsecraft import Sparsifier
from sparsecraft.core import catalog
from sparsecraft.core.errors import InvalidValue, NonFinite, UnknownName
from sparsecraft.core.kinds import Clock, TrainedLayer
from sparsecraft.core.patterns import NM, Block, Unstructured
from sparsecraft.methods.weights.sr_ste import SRSTE
from sparsecraft.methods.weights.ste import STE

NOW = Clock(5, 10)


class Network(nn.Module):
    """A convolution and two linear layers, from a fixed seed."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(8, 16, 3)
        self.fc1, self.fc2 = nn.Linear(16, 32), nn.Linear(32, 8)

    def forward(self, input):
        hidden = torch.relu(self.conv(input)).mean((2, 3))
        return self.fc2(torch.relu(self.fc1(hidden)))


def trained(method, steps=6, momentum=0.9):
    """Returns the model after `steps`, its sparsifier still open."""
    model = Network()
    sparsifier = Sparsifier(model, method, total_steps=steps, targets=["Linear", "Conv2d"])
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
    sparsifier.attach(sgd)
    draw = torch.Generator().manual_seed(1)
    for _ in range(steps):
        sgd.zero_grad()
        x = torch.randn(8, 8, 5, 5, generator=draw)
        F.cross_entropy(model(x), torch.arange(8)).backward()
        sgd.step()
    return model, sparsifier


def in_groups(weight, of, axis=1):
    """Returns how many of each group are not zero, groups lying along an axis."""
    return (weight.movedim(axis, -1).reshape(-1, of) != 0).sum(1)


@pytest.mark.parametrize("method", [STE, SRSTE])
@pytest.mark.parametrize("along, axis", [("inputs", 1), ("outputs", 0)])
def test_what_is_exported_is_the_pattern_in_every_layer(method, along, axis):
    model, sparsifier = trained(method(pattern=NM(2, 8), along=along))
    raw = {name: p.clone() for name, p in model.named_parameters() if p.dim() > 1}
    assert all(bool((value != 0).all()) for value in raw.values())
    report = sparsifier.finalize()
    for name, value in raw.items():
        finished = model.get_parameter(name)
        assert bool((in_groups(finished, 8, axis) == 2).all())
        assert torch.equal(finished[report.mask[name]], value[report.mask[name]])
    assert report.sparsity == pytest.approx(0.75)
    assert report.notes == ()


def test_the_mask_follows_the_raw_weight_in_every_forward_pass():
    layer, method = TrainedLayer("a", (1, 4)), STE(pattern=NM(1, 4))
    weight = torch.tensor([[3.0, 1.0, 2.0, 0.5]], requires_grad=True)
    assert method.forward(weight, layer, NOW).tolist() == [[3, 0, 0, 0]]
    with torch.no_grad():
        weight[0, 1] = -4
    assert method.forward(weight, layer, NOW).tolist() == [[0, -4, 0, 0]]


def test_all_weights_get_the_gradient():
    weight = torch.randn(4, 8, requires_grad=True)
    upstream = torch.randn(4, 8)
    STE(pattern=NM(1, 8)).forward(weight, TrainedLayer("a", (4, 8)), NOW).backward(upstream)
    assert torch.equal(weight.grad, upstream)


@given(st.sampled_from([(1, 2), (2, 4), (1, 8), (3, 8)]), st.integers(0, 10**6))
def test_every_group_computes_with_exactly_n(pattern, seed):
    keep, of = pattern
    draw = torch.Generator().manual_seed(seed)
    # Integers, so that magnitudes tie.
    weight = torch.randint(1, 4, (3, 2 * of), generator=draw).float()
    value = STE(pattern=NM(keep, of)).forward(weight, TrainedLayer("a", (3, 2 * of)), NOW)
    assert bool((in_groups(value, of) == keep).all())


def test_a_dense_phase_comes_first():
    weight = torch.randn(2, 8)
    layer, method = TrainedLayer("a", (2, 8)), STE(pattern=NM(1, 8), dense=0.5)
    assert method.forward(weight, layer, Clock(4, 10)) is weight
    assert int((method.forward(weight, layer, Clock(5, 10)) != 0).sum()) == 2
    assert [method.active_density(layer, Clock(step, 10)) for step in (4, 5)] == [1.0, 1 / 8]


def test_layers_may_have_their_own_patterns():
    method = STE(pattern=NM(2, 4), patterns={"fc1": "1:16", "conv": NM(1, 8)})
    model, sparsifier = trained(method)
    assert {name: method.pattern_of(name) for name in ("fc1", "conv", "fc2")} == {
        "fc1": NM(1, 16),
        "conv": NM(1, 8),
        "fc2": NM(2, 4),
    }
    report = sparsifier.finalize()
    assert bool((in_groups(model.fc1.weight, 16) == 1).all())
    assert bool((in_groups(model.conv.weight, 8) == 1).all())
    assert bool((in_groups(model.fc2.weight, 4) == 2).all())
    assert report.asked is None and report.notes == ()


def test_single_weights_and_blocks():
    model, sparsifier = trained(STE(pattern=Unstructured(), sparsity=0.9))
    sparsifier.finalize()
    assert int((model.fc1.weight != 0).sum()) == 51
    model, sparsifier = trained(STE(pattern=Block(2, 2), sparsity=0.5))
    sparsifier.finalize()
    assert int((model.fc1.weight != 0).sum()) == 256


def test_the_model_in_the_middle_of_a_training():
    model, sparsifier = trained(STE(pattern=NM(1, 8)))
    x = torch.randn(4, 8, 5, 5)
    with sparsifier.exported():
        inside = model(x)
        assert bool((in_groups(model.fc1.weight, 8) == 1).all())
    assert bool((model.fc1.weight != 0).all())
    assert torch.equal(model(x), inside)  # the layers compute with the masked weights anyway


def test_the_shrinking_term_is_added_once_and_only_to_masked_weights():
    weight = torch.tensor([[3.0, 1.0, -2.0, 0.5]], requires_grad=True)
    layer, method = TrainedLayer("a", (1, 4)), SRSTE(pattern=NM(1, 4), shrinkage=0.1)
    upstream = torch.tensor([[1.0, 1.0, 1.0, 1.0]])
    method.forward(weight, layer, NOW).backward(upstream)
    assert torch.equal(weight.grad, upstream)
    edited = method.edit_gradient(weight.detach(), weight.grad, layer, NOW)
    torch.testing.assert_close(edited, torch.tensor([[1.0, 1.1, 0.8, 1.05]]))


def test_the_shrinking_term_goes_through_momentum():
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 1.0, -1.0, 0.5]]))
    method = SRSTE(pattern=NM(1, 4), shrinkage=0.1)
    sparsifier = Sparsifier(model, method, total_steps=2)
    sgd = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.5)
    sparsifier.attach(sgd)
    for _ in range(2):
        sgd.zero_grad()
        (model(torch.zeros(1, 4)).sum()).backward()  # a gradient of zero: the term alone acts
        sgd.step()
    first = 1.0 - 0.1
    assert model.weight[0, 1].item() == pytest.approx(first - (0.5 * 0.1 + 0.1 * first))
    assert model.weight[0, 0].item() == 3.0


def test_without_shrinkage_it_is_ste():
    plain, _ = trained(STE(pattern=NM(1, 8)))
    same, _ = trained(SRSTE(pattern=NM(1, 8), shrinkage=0.0))
    other, _ = trained(SRSTE(pattern=NM(1, 8), shrinkage=0.1))
    assert torch.equal(plain.fc1.weight, same.fc1.weight)
    assert not torch.equal(plain.fc1.weight, other.fc1.weight)


def test_no_shrinking_in_the_dense_phase():
    layer = TrainedLayer("a", (1, 4))
    gradient = torch.zeros(1, 4)
    edited = SRSTE(dense=0.5).edit_gradient(torch.ones(1, 4), gradient, layer, Clock(0, 10))
    assert edited.tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("name", ["ste", "sr_ste"])
def test_settings_survive_json(name):
    method = catalog.build(name, pattern="1:16", patterns={"*.q": "2:4"}, along="outputs")
    assert catalog.restore(json.loads(json.dumps(catalog.describe(method)))) == method
    assert catalog.build(name, sparsity=0.5).pattern == NM(2, 4)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sparsity": 0.9}, "contradicts the pattern 2:4"),
        ({"pattern": NM(1, 16)}, "conv: 1:16 needs a multiple of 16 inputs, but the layer has 8"),
        ({"along": "outputs", "pattern": NM(1, 16)}, "fc2: 1:16 needs a multiple of 16 outputs"),
        ({"patterns": {"conv": "1:16"}}, "conv: 1:16 needs a multiple of 16 inputs"),
        ({"pattern": Block(3, 3), "sparsity": 0.5}, "do not tile"),
        ({"dense": 1.0}, r"dense=1.0 .* in \[0, 1\)"),
        ({"shrinkage": -1.0}, "would make masked weights grow"),
    ],
)
def test_refusals_before_any_work(options, message):
    with pytest.raises(InvalidValue, match=message):
        Sparsifier(Network(), SRSTE(**options), total_steps=3, targets=["Linear", "Conv2d"])


def test_names_that_mean_nothing_are_refused():
    with pytest.raises(UnknownName, match=r"layer in `patterns` 'fc9'.*Did you mean"):
        Sparsifier(Network(), STE(patterns={"fc9": "1:4"}), total_steps=3)
    with pytest.raises(UnknownName, match="direction of the groups 'input'"):
        STE(along="input")
    with pytest.raises(UnknownName, match="Unknown pattern '2-4'"):
        STE(patterns={"fc1": "2-4"})


def test_a_weight_that_is_not_finite_is_never_exported():
    model, sparsifier = trained(STE(pattern=NM(1, 8)))
    with torch.no_grad():
        model.fc1.weight[0, 0] = torch.nan
    with pytest.raises(NonFinite, match="fc1: the trained weight"):
        sparsifier.finalize()
    layers = {"fc1": TrainedLayer("fc1", (32, 16))}
    with pytest.raises(NonFinite, match="fc1: the trained weight has 1 NaN"):
        STE().final_masks({"fc1": model.fc1.weight.detach()}, layers, NOW)
