"""The layers of the families, computed by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.methods.weights.sparse_ift import DopedLayer, FactorizedLayer, ParallelLayer
from sparsecraft.methods.weights.sparse_ift.factorized import FeatureNorm


def images(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def conv(inputs=3, outputs=8, **options):
    torch.manual_seed(0)
    options = {"stride": 2, "padding": 1, "bias": False, **options}
    return nn.Conv2d(inputs, outputs, 3, **options).double()


def moved(norm):
    """Gives a normalisation statistics and scales of its own."""
    with torch.no_grad():
        for index, each in enumerate((norm.weight, norm.bias, norm.running_mean)):
            each.copy_(torch.linspace(-1, 2, each.numel()) + index)
        norm.running_var.copy_(torch.linspace(0.5, 3, norm.running_var.numel()))
    return norm


def test_parallel_is_the_sum_of_normalised_branches():
    x = images(4, 3, 6, 6)
    layer = ParallelLayer(conv(), nn.BatchNorm2d(8).double(), 3)
    for index, (each, norm) in enumerate(layer.branches):
        nn.init.normal_(each.weight, generator=torch.Generator().manual_seed(index))
        moved(norm)
    by_hand = torch.zeros(())
    for each, norm in layer.branches:
        y = F.conv2d(x, each.weight, stride=2, padding=1)
        mean, var = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), correction=0, keepdim=True)
        scale, shift = norm.weight.view(1, -1, 1, 1), norm.bias.view(1, -1, 1, 1)
        by_hand = by_hand + scale * (y - mean) / (var + norm.eps).sqrt() + shift
    assert torch.allclose(layer(x), by_hand, atol=1e-12)


def test_one_branch_is_the_layer_itself():
    x, layer, norm = images(2, 3, 6, 6), conv(), nn.BatchNorm2d(8).double()
    assert torch.equal(ParallelLayer(layer, norm, 1)(x), norm(layer(x)))


@pytest.mark.parametrize("middle", ["linear", "nonlinear_norelu", "nonlinear_relu"])
def test_factorised_convolution(middle):
    x, layer = images(2, 3, 6, 6), FactorizedLayer(conv(bias=True), 5, middle).eval()
    inner = F.conv2d(x, layer.U.weight, stride=2, padding=1)
    if middle != "linear":
        norm = moved(layer.middle[0])
        view = (1, -1, 1, 1)
        inner = (inner - norm.running_mean.view(view)) / (norm.running_var.view(view) + 1e-5).sqrt()
        inner = inner * norm.weight.view(view) + norm.bias.view(view)
    if middle == "nonlinear_relu":
        inner = inner.clamp(min=0)
    by_hand = torch.einsum("ok,nkhw->nohw", layer.V.weight[:, :, 0, 0], inner)
    assert torch.allclose(layer(x), by_hand + layer.V.bias.view(1, -1, 1, 1), atol=1e-12)
    assert layer.U.bias is None


def test_factorised_linear_layer_on_sequences():
    torch.manual_seed(0)
    x = images(2, 7, 6)
    layer = FactorizedLayer(nn.Linear(6, 4).double(), 3)
    inner = x.reshape(14, 6) @ layer.U.weight.T
    inner = (inner - inner.mean(0)) / (inner.var(0, correction=0) + 1e-5).sqrt()
    by_hand = inner.relu() @ layer.V.weight.T + layer.V.bias
    assert torch.allclose(layer(x), by_hand.view(2, 7, 4), atol=1e-12)
    assert isinstance(layer.middle[0], FeatureNorm)


def test_doped_convolution():
    x, original = images(2, 3, 6, 6), conv(bias=True)
    layer = DopedLayer(original, 2)
    low_rank = torch.einsum("ok,kihw->oihw", layer.V.weight[:, :, 0, 0], layer.U.weight)
    by_hand = F.conv2d(x, original.weight + low_rank, original.bias, stride=2, padding=1)
    assert torch.allclose(layer(x), by_hand, atol=1e-12)
    assert torch.equal(DopedLayer(original, 0)(x), original(x))


def test_new_layers_are_where_the_old_one_is_and_in_its_mode():
    layer = conv().eval()
    for made in (FactorizedLayer(layer, 4), DopedLayer(layer, 2)):
        assert {p.dtype for p in made.parameters()} == {torch.float64}
        assert not any(module.training for module in made.modules())


def test_bad_settings():
    with pytest.raises(UnknownName, match="Unknown middle 'relu'"):
        FactorizedLayer(nn.Linear(3, 3), 2, "relu")
    with pytest.raises(InvalidValue, match="rank=0"):
        FactorizedLayer(nn.Linear(3, 3), 0)
    with pytest.raises(InvalidValue, match="rank=-1"):
        DopedLayer(nn.Linear(3, 3), -1)
    with pytest.raises(InvalidValue, match="branches=0"):
        ParallelLayer(nn.Linear(3, 3), nn.ReLU(), 0)
    with pytest.raises(InvalidValue, match="ungrouped"):
        FactorizedLayer(nn.Conv2d(4, 4, 3, groups=2), 2)
