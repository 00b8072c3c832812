import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.core.allocation import ERK
from sparsecraft.core.errors import InvalidValue, NonFinite
from sparsecraft.core.kinds import Layer
from sparsecraft.core.mask import count
from sparsecraft.core.patterns import NM, Block, Unstructured
from sparsecraft.methods.weights.random import Random

ONES = torch.ones(8, 12)


def mask(method, density=0.5, weight=ONES, name="a", seed=0):
    return method.prune(weight, Layer(name=name, density=density, seed=seed)).mask


@given(st.floats(0.01, 1), st.integers(0, 2**31))
def test_the_count_is_exact(density, seed):
    assert int(mask(Random(), density, seed=seed).sum()) == max(1, count(96, density))


@pytest.mark.parametrize("pattern", [NM(1, 4), Block(2, 3), Unstructured(per="row")], ids=str)
def test_patterns(pattern):
    density = pattern.fixed_density or 0.25
    drawn = mask(Random(pattern=pattern), density)
    assert torch.equal(pattern.mask(drawn.float(), density), drawn)
    assert not torch.equal(drawn, mask(Random(pattern=pattern), density, seed=1))


def test_a_stream_for_each_layer_and_seed():
    first = mask(Random())
    assert torch.equal(first, mask(Random(), weight=-3 * ONES))
    assert not torch.equal(first, mask(Random(), name="b"))
    assert not torch.equal(first, mask(Random(), seed=1))


def test_every_place_is_as_likely():
    drawn = sum(mask(Random(), 0.25, seed=seed).float() for seed in range(600)) / 600
    assert float((drawn - 0.25).abs().max()) < 5 * (0.25 * 0.75 / 600) ** 0.5


def test_a_layer_never_vanishes():
    assert int(mask(Random(), 1e-4).sum()) == 1
    assert mask(Random(pattern=Unstructured(per="row")), 1e-4).sum(1).tolist() == [1] * 8


def test_bernoulli_scatters_around_the_density():
    weight = torch.ones(100, 100)
    kept = [int(mask(Random(bernoulli=True), 0.3, weight, seed=s).sum()) for s in range(40)]
    deviation = (0.3 * 0.7 * 10_000) ** 0.5
    assert len(set(kept)) > 20
    assert abs(sum(kept) / 40 - 3000) < 5 * deviation / 40**0.5
    assert 0.6 < torch.tensor(kept).float().std() / deviation < 1.5


def test_bernoulli_has_no_pattern():
    with pytest.raises(InvalidValue, match="cannot follow the pattern 2:4"):
        Random(bernoulli=True, pattern=NM(2, 4))


def test_any_allocation():
    assert Random(allocation=ERK()).allocation == ERK()


def test_what_is_not_finite_is_refused_by_name():
    with pytest.raises(NonFinite, match="fc1"):
        mask(Random(), weight=ONES / 0, name="fc1")
