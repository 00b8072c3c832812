"""Theorem 3.1: at initialisation active neurons are pushed down, by as much as derived."""

import pytest
import torch

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.lazy_gradients import (
    expected_cross_entropy_gradient,
    expected_squared_error_gradient,
    sampled_gradients,
)
from sparsecraft.core.seeds import generator

ACTIVATIONS = torch.tensor([0.5, 2.0, 0.0, 1.0, 3.0, 0.25])


def sampled(deviation, index=1, classes=5, samples=20000, label=3):
    return sampled_gradients(
        ACTIVATIONS,
        index,
        deviation=deviation,
        classes=classes,
        samples=samples,
        generator=generator(0, "theorem"),
        label=label,
    )


@pytest.mark.parametrize("index", [1, 3, 4])
def test_drawn_gradients_are_positive_and_match_the_formulas(index):
    found = sampled(0.1, index)
    activation = float(ACTIVATIONS[index])
    mean, error = found["squared error"]
    assert abs(mean - expected_squared_error_gradient(activation, 0.1, 5)) < 4 * error
    assert mean > 3 * error
    mean, error = found["cross-entropy"]
    assert abs(mean - expected_cross_entropy_gradient(activation, 0.1, 5)) < 4 * error


def test_cross_entropy_is_positive_beyond_the_first_order_too():
    mean, error = sampled(0.5, index=4)["cross-entropy"]
    assert mean > 3 * error
    assert mean < expected_cross_entropy_gradient(3.0, 0.5, 5)


def test_an_inactive_neuron_is_not_pushed():
    for mean, error in sampled(0.1, index=2).values():
        assert abs(mean) < 4 * error


def test_a_drawn_gradient_is_that_of_autograd():
    """The other neurons are drawn as one, of their joint size."""
    draws = torch.randn(2, 3, 2, generator=generator(0, "one"), dtype=torch.float64)
    others = ACTIVATIONS[[0, 1, 2, 3, 5]].double().norm()
    gradients = []
    for last in draws:
        a = torch.tensor([3.0, float(others)], dtype=torch.float64, requires_grad=True)
        torch.nn.functional.cross_entropy((last @ a)[None], torch.tensor([1])).backward()
        gradients.append(float(a.grad[0]))
    found = sampled_gradients(
        ACTIVATIONS, 4, deviation=1.0, classes=3, samples=2, generator=generator(0, "one"), label=1
    )
    assert found["cross-entropy"][0] == pytest.approx(sum(gradients) / 2, abs=1e-12)


def test_what_cannot_be_sampled_is_refused():
    for settings in ({"samples": 1}, {"index": 6}, {"label": 5}):
        with pytest.raises(InvalidValue, match="at least 2 samples, an index below 6"):
            sampled(0.1, **settings)
