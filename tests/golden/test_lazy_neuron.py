"""Top-k MLPs, their gradients, ECE and the theorem against our own float64 NumPy reference."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sparsecraft.core.lazy_gradients import (
    expected_cross_entropy_gradient,
    expected_squared_error_gradient,
    sampled_gradients,
)
from sparsecraft.core.seeds import generator
from sparsecraft.lab.measures import expected_calibration_error
from sparsecraft.model.activation_sparsity import ActivationMonitor
from sparsecraft.model.topk_mlp import TopKMLP

ARRAYS = np.load(Path(__file__).with_name("lazy_neuron.npz"))
KEPT = {"relu": None, "top1": 1, "top5": 5, "top16": 16, "top32": 32}


def tensor(name):
    return torch.from_numpy(ARRAYS[name])


def layer(k):
    made = TopKMLP(8, 32, k).double()
    values = {"first.weight": "K", "first.bias": "b1", "second.weight": "V", "second.bias": "b2"}
    made.load_state_dict({name: tensor(source) for name, source in values.items()})
    return made


@pytest.mark.parametrize("name", KEPT)
def test_forward_and_gradients(name):
    made, x = layer(KEPT[name]), tensor("X").requires_grad_()
    activation = made.hidden(x)
    output = made(x)
    (output * tensor("G")).sum().backward()
    found = {
        "act": activation,
        "out": output,
        "dX": x.grad,
        "dK": made.first.weight.grad,
        "db1": made.first.bias.grad,
        "dV": made.second.weight.grad,
        "db2": made.second.bias.grad,
    }
    for key, value in found.items():
        np.testing.assert_allclose(
            value.detach(), ARRAYS[f"{name}_{key}"], rtol=0, atol=1e-10, err_msg=key
        )
    zeros = (activation == 0).numpy()
    np.testing.assert_array_equal(zeros, ARRAYS[f"{name}_act"] == 0)


@pytest.mark.parametrize("name", KEPT)
def test_the_share_of_non_zeros_is_exact(name):
    report = ActivationMonitor(layer(KEPT[name])).measure([{"x": tensor("X")}])
    assert report.nonzero == float(ARRAYS[f"{name}_nonzero_frac"])


def test_expected_calibration_error():
    found = expected_calibration_error(tensor("ece_logits"), tensor("ece_labels"), bins=15)
    assert found == pytest.approx(float(ARRAYS["ece15"]), abs=1e-12)


@pytest.mark.parametrize("deviation", [0.02, 0.1, 0.3])
def test_the_theorem_by_drawing(deviation):
    """Two independent estimates: they differ by at most 4 of their joint standard errors."""
    activations, index = tensor("thm_pre").relu(), int(ARRAYS["thm_index"])
    found = sampled_gradients(
        activations,
        index,
        deviation=deviation,
        classes=10,
        samples=40_000,
        generator=generator(0, "golden"),
    )
    for short, name in (("ce", "cross-entropy"), ("mse", "squared error")):
        mean, error, _ = ARRAYS[f"thm_sv{deviation}_{short}_mean_sem"]
        ours, own_error = found[name]
        assert abs(ours - mean) < 4 * (error**2 + own_error**2) ** 0.5
        assert ours > 3 * own_error


@pytest.mark.parametrize("deviation", [0.02, 0.1, 0.3])
def test_the_formulas(deviation):
    activation = float(tensor("thm_pre")[int(ARRAYS["thm_index"])])
    for short, formula in (
        ("ce", expected_cross_entropy_gradient),
        ("mse", expected_squared_error_gradient),
    ):
        expected = ARRAYS[f"thm_sv{deviation}_{short}_mean_sem"][2]
        assert formula(activation, deviation, 10) == pytest.approx(expected, rel=1e-12)
