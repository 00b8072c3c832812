"""One step of iterative pruning: exact counts, nesting, scopes."""

import pytest
import torch
from torch import nn

from sparsecraft.core.errors import BudgetError, InvalidValue, NonFinite, UnknownName
from sparsecraft.core.mask import Mask, count
from sparsecraft.model.shrink import SCOPES, shrink
from sparsecraft.model.targets import find_targets


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4))


def test_global_and_layer_by_hand():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[8.0, -7.0], [6.0, 5.0]]))
        model[1].weight.copy_(torch.tensor([[1.0, -2.0], [9.0, 0.5]]))
    found = find_targets(model)
    mask = shrink(model, found, None, 0.5)
    assert mask["0.weight"].tolist() == [[True, True], [True, False]]
    assert mask["1.weight"].tolist() == [[False, False], [True, False]]
    mask = shrink(model, found, None, 0.5, scope="layer")
    assert mask["0.weight"].tolist() == [[True, True], [False, False]]
    assert mask["1.weight"].tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize("scope", SCOPES)
def test_masks_nest_and_end_at_the_exact_count(scope):
    model = net()
    found = find_targets(model)
    mask = None
    for density in (0.7, 0.4, 0.1):
        smaller = shrink(model, found, mask, density, scope=scope, seed=3)
        if mask is not None:
            assert all(not (smaller[name] & ~mask[name]).any() for name in mask)
        mask = smaller
        mask.apply_(dict(model.named_parameters()))
        if scope == "layer":
            assert mask.kept == count(40, density) + count(32, density)
        else:
            assert mask.kept == count(72, density)


def test_random_is_of_its_seed_and_not_of_the_weights():
    found = find_targets(net())
    one, two = (shrink(net(), found, None, 0.5, scope="random", seed=s) for s in (1, 2))
    larger = net()
    with torch.no_grad():
        larger[0].weight.mul_(100)
    assert one != two
    assert shrink(larger, found, None, 0.5, scope="random", seed=1) == one


def test_the_model_is_only_read():
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    shrink(model, find_targets(model), None, 0.2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_errors():
    model = net()
    found = find_targets(model)
    small = shrink(model, found, None, 0.1)
    with pytest.raises(BudgetError, match="can only be cut further"):
        shrink(model, found, small, 0.5)
    with pytest.raises(UnknownName, match="scope"):
        shrink(model, found, None, 0.5, scope="everywhere")
    with pytest.raises(InvalidValue, match="density"):
        shrink(model, found, None, 0.0)
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
    with pytest.raises(NonFinite, match="2: the trained weight"):
        shrink(model, found, Mask({n: torch.ones_like(m) for n, m in small.items()}), 0.5)
