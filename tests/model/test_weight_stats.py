import pytest
from torch import nn

from sparsecraft.core.errors import NoMatch
from sparsecraft.model.weight_stats import weight_stats


def test_figures_by_name():
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    found = weight_stats(model)
    assert list(found) == ["0", "2"]
    assert found["0"].largest == float(model[0].weight.detach().abs().max())
    assert sum(found["2"].histogram) == 24
    assert list(weight_stats(model, "2")) == ["2"]


def test_a_model_without_weights():
    with pytest.raises(NoMatch):
        weight_stats(nn.Sequential(nn.ReLU()))
