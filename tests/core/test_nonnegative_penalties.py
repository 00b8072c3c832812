"""NonNegativeL1 and NonNegativeL0: values, proxes by a grid, and the activations that they are."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.penalties import NonNegativeL0, NonNegativeL1

PENALTIES = [NonNegativeL1, NonNegativeL0]
entries = st.floats(-4, 4).map(lambda value: round(value, 3))
strengths = st.floats(0, 3)
steps = st.floats(0, 2)


def test_by_hand():
    x = torch.tensor([3.0, 1.0, 0.4, 0.0, -5.0])
    assert NonNegativeL1(strength=0.5).prox(x, 1.0).tolist() == pytest.approx(
        [2.5, 0.5, 0.0, 0.0, 0.0]
    )
    # sqrt(2 * 1 * 0.5) = 1, and what only reaches the threshold goes.
    assert NonNegativeL0(strength=0.5).prox(x, 1.0).tolist() == [3.0, 0.0, 0.0, 0.0, 0.0]
    positive = torch.tensor([3.0, 0.0, 0.5])
    assert NonNegativeL1(strength=2.0).value(positive).item() == 7.0
    assert NonNegativeL0(strength=2.0).value(positive).item() == 4.0


@pytest.mark.parametrize("penalty", PENALTIES)
def test_a_negative_entry_costs_everything(penalty):
    assert penalty().value(torch.tensor([1.0, -1e-6])).item() == math.inf


@pytest.mark.parametrize("penalty", PENALTIES)
@given(x=entries, strength=strengths, step=steps)
def test_no_point_of_a_grid_is_better_than_the_prox(penalty, x, strength, step):
    made = penalty(strength=strength)

    def cost(z):
        value = made.value(torch.tensor([z], dtype=torch.float64)).item()
        return 0.5 * (z - x) ** 2 + (step * value if step or value < math.inf else 0.0)

    found = made.prox(torch.tensor([x], dtype=torch.float64), step).item()
    best = min(cost(index / 100) for index in range(501))
    assert found >= 0
    assert cost(found) <= best + 1e-9


@given(x=st.lists(entries, min_size=1), y=st.lists(entries, min_size=1), strength=strengths)
def test_the_convex_one_is_firmly_nonexpansive(x, y, strength):
    size = min(len(x), len(y))
    a, b = (torch.tensor(v[:size], dtype=torch.float64) for v in (x, y))
    prox = NonNegativeL1(strength=strength).prox
    difference = prox(a, 1.0) - prox(b, 1.0)
    assert difference.square().sum() <= (difference * (a - b)).sum() + 1e-12


@given(x=st.lists(entries, min_size=1), theta=st.floats(0.01, 3))
def test_jumprelu_is_the_prox_at_half_the_squared_threshold(x, theta):
    # Away from the threshold itself, where a rounded square root may fall on either side.
    u = torch.tensor([each for each in x if abs(each - theta) > 1e-6], dtype=torch.float64)
    found = NonNegativeL0(strength=theta**2 / 2).prox(u, 1.0)
    assert torch.equal(found, torch.where(u > theta, u, 0.0))


@given(x=st.lists(entries, min_size=1), threshold=strengths)
def test_relu_with_a_bias_is_the_prox_of_the_sum(x, threshold):
    u = torch.tensor(x, dtype=torch.float64)
    assert torch.equal(NonNegativeL1(strength=threshold).prox(u, 1.0), (u - threshold).relu())


@pytest.mark.parametrize("penalty", PENALTIES)
def test_settings_that_are_not_allowed(penalty):
    with pytest.raises(InvalidValue, match=r"strength=-1\.0 is not allowed"):
        penalty(strength=-1.0)
    with pytest.raises(InvalidValue, match=r"step=-1\.0 is not allowed"):
        penalty().prox(torch.ones(1), -1.0)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_type_stays(penalty):
    x = torch.tensor([2.0, -1.0], dtype=torch.bfloat16)
    assert penalty().prox(x, 0.5).dtype == torch.bfloat16
