"""What folds into one layer, and the decay of products."""

import copy

import pytest
import torch
from tests.models import tiny_cnn, tiny_mlp
from torch import nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.methods.weights.sparse_ift import (
    DopedLayer,
    FactorizedLayer,
    ParallelLayer,
    fold,
    joint_decay_groups,
    joint_weight_decay,
    sparse_ift,
)

SHAPE = (1, 3, 8, 8)


def trained(family, dtype, **options):
    """A transformed network with masks and with statistics as after a training."""
    example = torch.zeros(SHAPE)
    model, report = sparse_ift(tiny_cnn(), family, sparsity=0.75, example_input=example, **options)
    draw = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for each in (module.weight, module.bias, module.running_mean):
                each.data.normal_(generator=draw)
            module.running_var.uniform_(0.2, 3, generator=draw)
    for name in report.targets:
        weight = model.get_parameter(name).data
        weight *= torch.rand(weight.shape, generator=draw) < report.densities[name]
    return model.to(dtype), report


def relative(one, other):
    return float((one - other).abs().max() / one.abs().max())


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("parallel", {}),
        ("factorized", {"middle": "linear"}),
        ("factorized", {"middle": "nonlinear_norelu"}),
        ("doped", {}),
    ],
)
def test_the_folded_network_computes_the_same(family, options, dtype, allowed):
    model, _ = trained(family, dtype, **options)
    x = torch.randn(4, *SHAPE[1:], dtype=dtype)
    folded, report = fold(model, x)
    assert type(folded[3]) is nn.Conv2d
    assert folded[3].weight.shape == (16, 8, 3, 3)
    assert folded[3].stride == (2, 2)
    assert relative(model.eval()(x).detach(), folded(x).detach()) <= allowed
    assert report.left == {}


def test_the_union_of_branches_is_denser_than_one_and_keeps_its_zeros():
    model, _ = trained("parallel", torch.float64)
    folded, report = fold(model)
    kept = torch.stack([each[0].weight != 0 for each in model[3].branches])
    assert torch.equal(folded[3].weight != 0, kept.any(0))
    assert report.densities["3"] == pytest.approx(1 - 0.75**4, abs=0.05)
    assert kept.double().mean().item() == pytest.approx(0.25, abs=0.03)


def test_doped_says_that_it_is_dense():
    _, report = fold(trained("doped", torch.float32)[0])
    assert report.densities["3"] == 1.0
    assert report.notes == ("1 doped layers are dense now: W + V U has no zeros",)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_fold_too(bias):
    torch.manual_seed(0)
    x, linear = torch.randn(3, 5, 6, dtype=torch.float64), nn.Linear(6, 4, bias=bias).double()
    for middle in ("linear", "nonlinear_norelu"):
        layer = FactorizedLayer(linear, 7, middle)
        layer(x)  # gathers statistics
        folded, _ = fold(nn.Sequential(layer), x)
        assert type(folded[0]) is nn.Linear
        assert (folded[0].in_features, folded[0].out_features) == (6, 4)
    layer = ParallelLayer(linear, nn.BatchNorm1d(4).double(), 2)
    layer(x[0])
    folded, _ = fold(layer, x[0])
    assert type(folded) is nn.Linear


def test_what_has_an_activation_inside_stays_and_says_so():
    model, _ = trained("factorized", torch.float32)
    folded, report = fold(model)
    assert isinstance(folded[3], FactorizedLayer)
    assert report.left == {"3": "an activation stands between U and V"}
    mlp, _ = sparse_ift(tiny_mlp(), "parallel", sparsity=0.5, example_input=torch.zeros(1, 12))
    _, report = fold(mlp)
    assert report.left == {"2": "an activation stands between the branches and their sum"}
    free = ParallelLayer(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, track_running_stats=False), 2)
    _, report = fold(nn.Sequential(free))
    assert report.left == {"0": "its normalisation keeps no running statistics"}


def test_nothing_to_fold_and_a_fold_that_differs(monkeypatch):
    with pytest.raises(InvalidValue, match="a Sparse-Wide model is plain already"):
        fold(tiny_cnn())
    model, _ = trained("doped", torch.float64)
    # float32 arithmetic cannot meet the bound of double precision.
    from sparsecraft.methods.weights.sparse_ift import folding

    right = folding.product
    monkeypatch.setattr(folding, "product", lambda v, u: right(v, u).float().double())
    with pytest.raises(InvalidValue, match=r"differs from the trained one.*1e-10 is allowed"):
        fold(model, torch.randn(SHAPE, dtype=torch.float64))


def test_folding_leaves_the_model_alone():
    model, _ = trained("parallel", torch.float32)
    before = copy.deepcopy(model.state_dict())
    model.train()
    fold(model)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_joint_decay_is_that_of_the_folded_product():
    torch.manual_seed(0)
    model = nn.Sequential(
        DopedLayer(nn.Conv2d(3, 4, 3), 2),
        FactorizedLayer(nn.Conv2d(4, 5, 3), 6, "linear"),
        FactorizedLayer(nn.Conv2d(5, 5, 3), 6),  # an activation inside: no product
    ).double()
    expected = 0.0
    for layer in model[:2]:
        product = torch.einsum("ok,kihw->oihw", layer.V.weight[:, :, 0, 0], layer.U.weight)
        expected = expected + 0.05 / 2 * product.square().sum()
    decay = joint_weight_decay(model, 0.05)
    assert torch.allclose(decay, expected)
    wanted = torch.autograd.grad(expected, model[0].U.weight)[0]
    assert torch.allclose(torch.autograd.grad(decay, model[0].U.weight)[0], wanted)


def test_the_optimiser_spares_the_factors_of_products_only():
    model = nn.Sequential(DopedLayer(nn.Linear(3, 3), 1), FactorizedLayer(nn.Linear(3, 3), 2))
    decayed, spared = joint_decay_groups(model, 0.1)
    assert {id(p) for p in spared["params"]} == {id(model[0].U.weight), id(model[0].V.weight)}
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert len(decayed["params"]) + 2 == len(list(model.parameters()))
    with pytest.raises(InvalidValue, match="needs a product V U"):
        joint_weight_decay(nn.Sequential(FactorizedLayer(nn.Linear(3, 3), 2)), 0.1)
