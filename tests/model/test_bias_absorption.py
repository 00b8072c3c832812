"""Constants of removed channels: exact away from zero-padded borders, measured, or refused."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from tests.model.test_channels import IMAGE, bits, randomized, silenced
from torch import nn

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.model.bias_absorption import absorb_constants
from sparsecraft.model.channels import channel_groups, prune_channels
from sparsecraft.model.direct_readers import direct_readers


def compared(model, masks, borders=True, image=IMAGE):
    """Returns the outputs of the network with zero scales, and of the smaller one."""
    sparse = silenced(model, masks, shift=False)
    smaller, _ = prune_channels(sparse, masks, absorb_bias=borders, example_input=image)
    with torch.no_grad():
        return sparse(image), smaller(image)


def convolutions(padding, bias, mode="zeros", activation=nn.ReLU):
    """Returns two normalised convolutions and a last one; every channel has a shift that shows."""

    def conv(inputs, outputs):
        return nn.Conv2d(inputs, outputs, 3, padding=padding, bias=bias, padding_mode=mode)

    net = randomized(
        nn.Sequential(
            conv(3, 6), nn.BatchNorm2d(6), activation(),
            conv(6, 5), nn.BatchNorm2d(5), activation(), nn.Conv2d(5, 4, 1),
        )
    )  # fmt: skip
    with torch.no_grad():
        for norm in (net[1], net[4]):
            norm.bias.copy_(torch.linspace(0.9, 0.3, len(norm.bias)))
    return net


KEEP = {"1": bits("010110"), "4": bits("11001")}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.SiLU])
def test_without_padding_it_is_exact(bias, activation):
    expected, found = compared(convolutions(0, bias, activation=activation), KEEP)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def test_without_it_the_constants_are_lost():
    model = convolutions(0, True)
    expected, found = compared(model, KEEP, borders=False)
    assert float((found - expected).abs().max()) > 0.05


@pytest.mark.parametrize("bias", [True, False])
def test_zero_padding_is_exact_away_from_the_border(bias):
    expected, found = compared(convolutions(1, bias), KEEP)
    inside = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(found[inside], expected[inside], atol=1e-10, rtol=0)
    assert float((found - expected).abs().max()) > 0.01


def test_padding_that_repeats_the_border_is_exact_everywhere():
    expected, found = compared(convolutions(1, False, "replicate"), KEEP)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def test_the_mean_over_positions_leaves_no_mean_error():
    model = convolutions(1, True)[:4]
    masks = {"1": KEEP["1"]}
    expected, found = compared(model, masks, "mean")
    error = (found - expected).mean((0, 2, 3))
    torch.testing.assert_close(error, torch.zeros_like(error), atol=1e-10, rtol=0)
    expected, interior = compared(model, masks, "interior")
    assert (found - expected).square().sum() < (interior - expected).square().sum()


class Residual(nn.Module):
    """A sum of two normalised branches, pooled and flattened into a linear layer."""

    def __init__(self):
        super().__init__()
        self.one, self.one_norm = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)
        self.two, self.two_norm = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)
        self.depth = nn.Conv2d(6, 6, 3, groups=6, padding=1)
        self.depth_norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6 * 4, 3)

    def forward(self, x):
        x = F.relu(self.one_norm(self.one(x)) + self.two_norm(self.two(x)))
        x = F.relu(self.depth_norm(self.depth(x)))
        return self.head(F.avg_pool2d(x, 4).flatten(1))


def test_a_linear_layer_after_sums_depthwise_layers_and_flatten_is_exact():
    masks = {name: bits("011010") for name in ("one_norm", "two_norm", "depth_norm")}
    expected, found = compared(randomized(Residual()), masks)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def places(*layers):
    """Returns the tensors that absorbing changes, behind a convolution and its BatchNorm."""
    net = randomized(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), *layers))
    (group,) = [each for each in channel_groups(net, IMAGE) if each.norms == ("1",)]
    before = copy.deepcopy(net.state_dict())
    found = absorb_constants(net, {group.units: bits("0011")}, IMAGE)
    after = net.state_dict()
    changed = [k for k in after if k not in before or not torch.equal(after[k], before[k])]
    assert changed == list(found.values())
    return changed


def test_each_place_that_takes_the_constants():
    def bare():
        return nn.Conv2d(4, 2, 3, bias=False)

    assert places(nn.Conv2d(4, 2, 3)) == ["2.bias"]
    assert places(nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2)) == ["2.bias"]
    assert places(bare(), nn.BatchNorm2d(2)) == ["3.running_mean"]
    assert places(bare(), nn.ReLU()) == ["2.bias"]  # a new one
    assert places(bare(), nn.ReLU(), nn.BatchNorm2d(2)) == ["2.bias"]


def test_statistics_of_the_batch_take_the_constants_away_themselves():
    net = randomized(
        nn.Sequential(
            nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3, bias=False),
            nn.BatchNorm2d(5, track_running_stats=False), nn.Conv2d(5, 2, 1),
        )
    )  # fmt: skip
    expected, found = compared(net, {"1": bits("0110")})
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def test_channels_that_are_not_constant_are_refused():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
            self.bare, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return self.two(self.norm(self.one(x)) + self.bare(x))

    model = randomized(Skip())
    prune_channels(model, {"norm": bits("1010")}, example_input=IMAGE)
    with pytest.raises(InvalidValue, match="without a BatchNorm is added"):
        prune_channels(model, {"norm": bits("1010")}, absorb_bias=True, example_input=IMAGE)
    one = IMAGE[:1]  # a single example is compared with another input like it
    with pytest.raises(InvalidValue, match="without a BatchNorm is added"):
        prune_channels(model, {"norm": bits("1010")}, absorb_bias=True, example_input=one)


def test_readers_without_a_bias_to_fold_into_are_refused():
    turned = randomized(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 2, 2, stride=2))
    )
    with pytest.raises(InvalidValue, match="neither linear nor an ordinary convolution"):
        prune_channels(turned, {"1": bits("1010")}, absorb_bias=True, example_input=IMAGE)

    class Direct(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.norm, self.two = (
                nn.Conv2d(3, 4, 1),
                nn.BatchNorm2d(4),
                nn.Conv2d(4, 2, 1),
            )

        def forward(self, x):
            return F.conv2d(self.norm(self.one(x)), self.two.weight)

    with pytest.raises(InvalidValue, match="never called"):
        prune_channels(
            randomized(Direct()), {"norm": bits("1010")}, absorb_bias=True, example_input=IMAGE
        )
    with pytest.raises(UnknownName, match="interior"):
        prune_channels(turned, {"1": bits("1010")}, absorb_bias="inside", example_input=IMAGE)


def test_the_network_is_left_as_it_was():
    model = convolutions(1, False).train()
    before = copy.deepcopy(model.state_dict())
    prune_channels(model, KEEP, absorb_bias=True, example_input=IMAGE)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_direct_readers_are_those_of_the_very_tensor():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, x):
            y = self.a(x)
            return self.b(y) + self.c(y) + self.d(F.relu(y))

    assert direct_readers(Net(), torch.rand(2, 4)) == {"a": ["b", "c"]}
