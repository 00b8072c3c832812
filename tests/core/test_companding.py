import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.core.companding import COMPANDING, Arctan, Power, companding
from sparsecraft.core.errors import InvalidValue, UnknownName

PAIRS = ((0.5, 0.25), (0.2, 0.1), (2.0, 1.5))
NAMES = tuple(COMPANDING)
pairs = st.tuples(st.floats(0.05, 3.0), st.floats(1.01, 5.0)).map(lambda p: (p[0] * p[1], p[0]))


def values(seed: int = 0, count: int = 50, scale: float = 0.5) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, generator=draws, dtype=torch.float64)


def scalar(x: float) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64)


def test_arctan_by_hand():
    f = Arctan()
    v = torch.tensor([0.0, 0.25, -0.25], dtype=torch.float64)
    expected = torch.tensor([0.0, math.pi / 8, -math.pi / 8], dtype=torch.float64)
    torch.testing.assert_close(f.value(v, 0.5, 0.25), expected, rtol=0, atol=1e-16)
    slopes = torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(f.derivative(v, 0.5, 0.25), slopes, rtol=0, atol=1e-15)
    assert f.bound(0.5) == 0.5 * math.pi / 2
    assert f.slope(0.5, 0.25) == 2
    assert f.unit_slope(0.5, 0.25) == 0.25


@given(st.sampled_from(NAMES), pairs, st.integers(0, 1000))
def test_laws(name, pair, seed):
    """Odd, rising, bounded, inverted by its inverse, with the derivative of autograd."""
    f, (a, b) = companding(name), pair
    v = values(seed, scale=b).sort().values.requires_grad_()
    w = f.value(v, a, b)
    assert torch.equal(f.value(-v, a, b), -w)
    assert (w.diff() > 0).all()
    assert (w.abs() < f.bound(a)).all()
    torch.testing.assert_close(f.inverse(w, a, b), v, rtol=1e-8, atol=1e-10 * b)
    (slope,) = torch.autograd.grad(w.sum(), v)
    torch.testing.assert_close(f.derivative(v, a, b), slope, rtol=1e-9, atol=1e-12)
    zero = torch.zeros(1, dtype=torch.float64)
    assert float(f.derivative(zero, a, b)) == pytest.approx(f.slope(a, b))


@given(st.sampled_from(NAMES), pairs)
def test_fixed_point_and_unit_slope(name, pair):
    f, (a, b) = companding(name), pair
    fixed, unit = f.fixed_point(a, b), f.unit_slope(a, b)
    assert float(f.value(scalar(fixed), a, b)) == pytest.approx(fixed, abs=1e-10)
    assert float(f.derivative(scalar(unit), a, b)) == pytest.approx(1, abs=1e-9)
    inside, outside = scalar(fixed / 2), scalar(fixed * 2)
    expands = name != "power"
    assert bool(f.value(inside, a, b) > inside) == expands
    assert bool(f.value(outside, a, b) < outside) == expands


@pytest.mark.parametrize("name", [n for n in NAMES if n != "power"])
def test_without_a_slope_above_one_nothing_expands(name):
    f = companding(name)
    assert f.fixed_point(0.5, 0.5) == 0 == f.unit_slope(0.5, 0.5)
    assert f.fixed_point(0.5, 1.0) == 0 == f.unit_slope(0.5, 1.0)


@pytest.mark.parametrize("name", NAMES)
def test_zero_stays_zero_and_its_slope_is_not_lost(name):
    f = companding(name)
    zero = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    w = f.value(zero, 0.5, 0.25)
    (slope,) = torch.autograd.grad(w.sum(), zero)
    assert not w.any()
    assert slope.tolist() == [f.slope(0.5, 0.25)] * 3


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_gradients_of_the_constants(a, b):
    """Closed forms of section 3 of the paper's method, for a loss that is linear in w."""
    v, upstream = values(1), values(2)
    a, b = scalar(a).requires_grad_(), scalar(b).requires_grad_()
    (upstream * Arctan().value(v, a, b)).sum().backward()
    of_a = (upstream * torch.atan(v / b)).sum()
    of_b = (upstream * -a * v / (b.square() + v.square())).sum()
    torch.testing.assert_close(a.grad, of_a.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(b.grad, of_b.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_type_of_the_weight_is_kept(name, dtype):
    v = values().to(dtype)
    f = companding(name)
    for found in (f.value(v, 0.5, 0.25), f.derivative(v, 0.5, 0.25), f.inverse(v / 9, 0.5, 0.25)):
        assert found.dtype == dtype


def test_errors():
    with pytest.raises(UnknownName, match=r"companding function 'arctangent'.*'arctan'"):
        companding("arctangent")
    with pytest.raises(InvalidValue, match="greater than 1"):
        Power(exponent=1.0)
