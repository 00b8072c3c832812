"""What makes layers alike, and the error by which a candidate is judged."""

import pytest
import torch
from torch import nn

from sparsecraft.core.gating import ActivationGate
from sparsecraft.model.runtime.candidates import Candidate
from sparsecraft.model.runtime.facts import LayerFacts
from sparsecraft.model.runtime.layers import LinearLayer


def facts(density=1.0, gate=None, inputs=None, shape=(8, 16), bias=True, seed=0):
    stream = torch.Generator().manual_seed(seed)
    module = nn.Linear(shape[1], shape[0], bias=bias)
    weight = torch.randn(shape, generator=stream)
    weight.view(-1)[round(density * weight.numel()) :] = 0
    module.weight = nn.Parameter(weight)
    x = torch.randn(10, shape[1], generator=stream) if inputs is None else inputs
    return LayerFacts.of(LinearLayer(("layer",), module, gate), x)


def test_like_layers_have_one_shape_type_density_and_gate():
    assert facts(0.5).likeness == facts(0.51, seed=1).likeness
    different = [
        facts(0.9),
        facts(shape=(16, 8)),
        facts(bias=False),
        facts(gate=ActivationGate(keep=4)),
        facts(gate=ActivationGate(keep=8)),
        facts(gate=ActivationGate(keep=8, norms=torch.ones(16))),
    ]
    assert len({each.likeness for each in [facts(0.5), *different]}) == 7


def test_the_share_that_a_gate_keeps():
    assert facts(gate=ActivationGate(keep=4)).kept == 0.25
    x = torch.tensor([[1.0, 3.0], [0.5, 0.2]])
    assert facts(gate=ActivationGate(threshold=0.9), inputs=x, shape=(8, 2)).kept == 0.5
    assert facts().kept is None


def test_inputs_with_zeros_are_gated_by_nature():
    x = torch.randn(10, 16, generator=torch.Generator().manual_seed(0)).relu()
    natural = facts(inputs=x)
    assert natural.natural
    assert natural.gate.threshold == 0
    assert natural.kept == pytest.approx(float((x > 0).float().mean()))
    assert not facts().natural


def test_errors_are_relative_to_the_exact_product():
    made = facts()
    store = Candidate("dense", "int8").pack(made.layer.weight)
    x, weight = made.inputs.double(), made.layer.weight.double()
    wanted = x @ weight.t()
    got = x @ store.unpack().double().t()
    error = made.error(Candidate("dense", "int8"), store)
    assert error == pytest.approx(float((got - wanted).norm() / wanted.norm()), rel=1e-3)
    assert made.errors == {"dense int8": error}


def test_gated_products_are_compared_with_the_gated_input():
    made = facts(gate=ActivationGate(keep=4))
    store = Candidate("gated", "float32").pack(made.layer.weight)
    assert made.error(Candidate("gated", "float32"), store) < 1e-6
    assert made.error(Candidate("by_input", "float32"), store) < 1e-6


def test_a_layer_of_zeros_has_no_error():
    made = facts(density=0.0)
    store = Candidate("bitmask", "float32").pack(made.layer.weight)
    assert made.error(Candidate("bitmask", "float32"), store) == 0
