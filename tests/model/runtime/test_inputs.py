"""Errors and gates are judged on what layers are really given."""

import pytest
import torch
from tests.models import Blocks, tiny_bert, tiny_llama, tiny_mlp, tiny_vit
from torch import nn

from sparsecraft.core.errors import InvalidValue, NonFinite
from sparsecraft.model.gating import gate
from sparsecraft.model.runtime.inputs import layer_inputs
from sparsecraft.model.runtime.layers import find_layers


def inputs(model, example=None):
    return layer_inputs(model, find_layers(model)[0], example)


@pytest.mark.parametrize(
    ("make", "origin"),
    [(tiny_llama, "random tokens"), (tiny_bert, "random tokens"), (tiny_vit, "random pixels")],
)
def test_models_with_a_config_are_run_on_random_inputs(make, origin):
    model = make()
    found, told = inputs(model)
    assert told.startswith(origin)
    shapes = {layer.name: layer.shape for layer in find_layers(model)[0]}
    assert found.keys() == shapes.keys()
    assert all(x.shape[1] == shapes[name][1] for name, x in found.items())
    assert all(1 <= x.shape[0] <= 32 for x in found.values())


def test_the_same_inputs_each_time():
    first, second = (inputs(tiny_llama())[0] for _ in range(2))
    assert all(torch.equal(x, second[name]) for name, x in first.items())


def test_without_a_config_they_are_normal_numbers_and_that_is_said():
    found, told = inputs(tiny_mlp())
    assert told == "normal numbers, no example was given"
    assert found["0"].shape == (32, 12)
    assert abs(float(found["0"].std()) - 1) < 0.2


def test_an_example_is_taken():
    x = torch.arange(24.0).view(2, 12)
    found, told = inputs(tiny_mlp(), {"input": x})
    assert told == "the example given"
    assert torch.equal(found["0"], x)


def test_the_last_rows_count():
    x = torch.arange(50.0)[:, None].repeat(1, 12)
    assert inputs(tiny_mlp(), {"input": x})[0]["0"][:, 0].tolist() == [*range(18, 50)]


def test_inputs_are_seen_before_their_gate():
    model = tiny_mlp()
    x = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
    gate(model, "teal", rule="topk", sparsity=0.5)
    assert torch.equal(inputs(model, {"input": x})[0]["0"], x)


def test_layers_that_an_example_does_not_reach_get_normal_numbers_and_that_is_said():
    model = Blocks()
    model.spare = nn.Linear(8, 8)
    found, told = inputs(model, {"x": torch.zeros(1, 3, 16)})
    assert told == "the example given; normal numbers for 1 layers that it did not reach"
    assert found["spare"].shape == (32, 8)


def test_modes_and_hooks_are_as_before():
    model = tiny_mlp().train()
    model[2].eval()
    before = [module.training for module in model.modules()]
    inputs(model, {"input": torch.zeros(1, 12)})
    assert [module.training for module in model.modules()] == before
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_wrong_example_is_refused():
    with pytest.raises(InvalidValue, match="does not take the example"):
        inputs(tiny_mlp(), {"input": torch.zeros(1, 5)})


def test_inputs_that_are_not_finite_are_refused():
    with pytest.raises(NonFinite, match="the input of 0 has NaN"):
        inputs(tiny_mlp(), {"input": torch.full((1, 12), torch.nan)})
