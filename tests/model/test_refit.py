import pytest
import torch
from tests.models import tiny_llama
from torch import nn

from sparsecraft.core.errors import MissingStatistic
from sparsecraft.model.compaction import compact
from sparsecraft.model.refit import refit
from sparsecraft.model.units import find_units


def inputs(count: int = 256) -> torch.Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(0))


def network(bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3, bias=bias))


def test_a_unit_that_repeats_another_costs_nothing():
    model = network()
    with torch.no_grad():
        model[0].weight[7], model[0].bias[7] = model[0].weight[2], model[0].bias[2]
    keep = {"0": torch.arange(8) < 7}
    smaller, index_map = compact(model, keep)
    before = (smaller(inputs()) - model(inputs())).abs().max()
    assert refit(smaller, model, index_map, [{"input": inputs()}]) == ["2"]
    after = (smaller(inputs()) - model(inputs())).abs().max()
    assert after < 0.12 * before


def test_a_unit_that_never_changes_moves_into_the_bias():
    model = network()
    with torch.no_grad():
        model[0].weight[7], model[0].bias[7] = 0.0, 5.0
    smaller, index_map = compact(model, {"0": torch.arange(8) < 7})
    before = (smaller(inputs()) - model(inputs())).abs().max()
    refit(smaller, model, index_map, [{"input": inputs()}])
    assert (smaller(inputs()) - model(inputs())).abs().max() < 0.05 * before


@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_least_squares_solution(bias):
    model = network(bias)
    smaller, index_map = compact(model, {"0": torch.arange(8) % 2 == 0})
    refit(smaller, model, index_map, [{"input": inputs(100)}, {"input": inputs()[100:]}])
    hidden = smaller[1](smaller[0](inputs())).detach()
    columns = torch.cat([hidden, torch.ones(len(hidden), 1)], 1) if bias else hidden
    best = torch.linalg.lstsq(columns, model(inputs()).detach()).solution
    wanted = ((columns @ best - model(inputs())) ** 2).mean()
    found = ((smaller(inputs()) - model(inputs())) ** 2).mean()
    assert wanted <= found <= 1.05 * wanted


def test_layers_whose_own_units_go_too_keep_their_rows():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    keep = {"0": torch.arange(8) < 6, "2": torch.arange(8) < 5}
    smaller, index_map = compact(model, keep)
    assert refit(smaller, model, index_map, [{"input": inputs()}]) == ["2", "4"]
    assert smaller[2].weight.shape == (5, 6)
    assert smaller(inputs()).isfinite().all()


def test_padding_and_training_mode_leave_no_trace():
    model = tiny_llama()
    group = next(group for group in find_units(model) if group.kind == "neurons")
    keep = {group.name: torch.arange(group.size) % 2 == 0}
    ids = torch.randint(3, 60, (2, 8), generator=torch.Generator().manual_seed(0))
    padded = torch.cat([ids, torch.zeros(2, 4, dtype=torch.long)], 1)
    mask = (padded != 0).long()
    weights = []
    for batch in ({"input_ids": ids}, {"input_ids": padded, "attention_mask": mask}):
        smaller, index_map = compact(model, keep)
        refit(smaller, model, index_map, [batch])
        weights.append(smaller.model.layers[0].mlp.down_proj.weight)
    assert torch.allclose(*weights, atol=1e-3)


def test_without_data():
    model = network()
    smaller, index_map = compact(model, {"0": torch.arange(8) < 7})
    with pytest.raises(MissingStatistic, match="at least one calibration batch"):
        refit(smaller, model, index_map, [])
