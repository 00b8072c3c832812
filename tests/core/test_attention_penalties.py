import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.core.attention_penalties import (
    PENALTIES,
    attention_penalty,
    attention_statistics,
    choose_layers,
    log1p_sq_bounds,
)
from sparsecraft.core.errors import InvalidValue, UnknownName

UNIFORM = torch.full((2, 3, 4, 5), 0.2, dtype=torch.float64)
ONE_KEY = torch.eye(5, dtype=torch.float64)[:4].expand(2, 3, 4, 5)
SPARSIFYING = ("negative_log1p_sq", "hoyer", "entropy")


def random_maps(seed: int, keys: int) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(2, 2, 3, keys, generator=draws, dtype=torch.float64)).softmax(-1)


def test_a_row_by_hand():
    row = torch.tensor([[[[0.5, 0.5, 0.0, 0.0]]]], dtype=torch.float64)
    value = lambda name: float(attention_penalty([row], name))  # noqa: E731
    assert value("log1p_sq") == pytest.approx(2 * math.log(1.25) / 4)
    assert value("negative_log1p_sq") == -value("log1p_sq")
    assert value("l1") == pytest.approx(0.25)
    assert value("hoyer") == pytest.approx(math.sqrt(2))
    assert value("entropy") == pytest.approx(math.log(2))


def test_sum_and_layers_by_hand():
    maps = [UNIFORM, ONE_KEY, UNIFORM]
    one = math.log(2) / 5
    flat = math.log1p(0.04)
    assert float(attention_penalty(maps, layers=(1,))) == pytest.approx(one)
    assert float(attention_penalty(maps)) == pytest.approx(flat)
    assert float(attention_penalty(maps, layers="all")) == pytest.approx((2 * flat + one) / 3)
    assert float(attention_penalty(maps, layers=(0, -2))) == pytest.approx((flat + one) / 2)
    summed = attention_penalty(maps, layers=(0, 1), reduce="sum")
    assert float(summed) == pytest.approx(120 * (flat + one))


@given(st.integers(0, 10_000), st.integers(2, 9))
def test_the_official_penalty_is_least_for_uniform_attention(seed, keys):
    least, greatest = log1p_sq_bounds(keys)
    found = float(attention_penalty([random_maps(seed, keys)]))
    assert least <= found <= greatest
    uniform = torch.full((1, 1, 1, keys), 1 / keys, dtype=torch.float64)
    assert float(attention_penalty([uniform])) == pytest.approx(least)
    one = torch.eye(keys, dtype=torch.float64)[None, None]
    assert float(attention_penalty([one])) == pytest.approx(greatest)


@given(st.integers(0, 10_000), st.integers(2, 9), st.sampled_from(SPARSIFYING))
def test_sparsifying_penalties_are_least_for_one_key(seed, keys, name):
    one = float(attention_penalty([torch.eye(keys, dtype=torch.float64)[None, None]], name))
    uniform = torch.full((1, 1, 1, keys), 1 / keys, dtype=torch.float64)
    flat = float(attention_penalty([uniform], name))
    found = float(attention_penalty([random_maps(seed, keys)], name))
    assert one - 1e-12 <= found <= flat + 1e-12
    assert one < flat


@pytest.mark.parametrize("name", PENALTIES)
def test_gradients_through_masked_logits_are_finite_and_right(name):
    logits = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    excluded = torch.tensor([False, False, True, True])

    def value(x):
        return attention_penalty([x.masked_fill(excluded, -math.inf).softmax(-1)], name)

    value(logits).backward()
    assert logits.grad.isfinite().all()
    assert torch.autograd.gradcheck(value, (logits.detach().requires_grad_(),))


def test_the_official_gradient():
    maps = random_maps(3, 5).requires_grad_()
    attention_penalty([maps]).backward()
    expected = 2 * maps / (1 + maps.square()) / maps.numel()
    torch.testing.assert_close(maps.grad, expected.detach(), rtol=0, atol=1e-15)


def test_a_row_of_zeros_does_no_harm():
    zeros = torch.zeros(1, 1, 2, 3, requires_grad=True)
    for name in PENALTIES:
        value = attention_penalty([zeros], name)
        (gradient,) = torch.autograd.grad(value, zeros)
        assert float(value.detach()) == 0
        assert gradient.isfinite().all()


def test_statistics():
    flat, one = attention_statistics(UNIFORM), attention_statistics(ONE_KEY)
    assert flat.entropy == pytest.approx(math.log(5)) == flat.uniform_entropy
    assert flat.peakiness == pytest.approx(0.2)
    assert (one.entropy, one.peakiness) == (0.0, 1.0)
    assert one.log1p_sq == pytest.approx(math.log(2) / 5)


def test_errors_say_what_is_allowed():
    with pytest.raises(UnknownName, match=r"attention penalty 'entropie'.*'entropy'"):
        attention_penalty([UNIFORM], "entropie")
    with pytest.raises(InvalidValue, match='reduce=\'max\' is not allowed: give "mean" or "sum"'):
        attention_penalty([UNIFORM], reduce="max")
    with pytest.raises(InvalidValue, match=r"there is no layer 2; there are 1, 0 to 0"):
        attention_penalty([UNIFORM], layers=(2,))
    with pytest.raises(InvalidValue, match='give "last", "all" or numbers'):
        choose_layers([UNIFORM], "first")
    with pytest.raises(InvalidValue, match="give"):
        choose_layers([UNIFORM], ())
    with pytest.raises(InvalidValue, match="no attention map"):
        choose_layers([], "last")
