import dataclasses

import pytest
import torch

from sparsecraft.core.allocation import ERK
from sparsecraft.core.errors import InvalidValue, MissingStatistic
from sparsecraft.core.kinds import Layer, Layerwise, ModelWide, Pruned
from sparsecraft.core.patterns import NM, Channels, Unstructured
from sparsecraft.core.statistics import InputNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wide(ModelWide):
    """Keeps the largest."""

    def prune(self, weights, context):
        return self.globally(weights, {n: w.abs() for n, w in weights.items()})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Single(Layerwise):
    """Keeps the largest."""

    def prune(self, weight, layer):
        return Pruned.keeping(weight, self.pattern.mask(weight.abs(), layer.density))


@pytest.mark.parametrize(
    ("options", "density"),
    [
        ({}, 0.5),
        ({"sparsity": 0.0}, 1.0),
        ({"sparsity": 0.9}, 0.1),
        ({"pattern": NM(1, 4)}, 0.25),
        ({"pattern": NM(1, 4), "sparsity": 0.75}, 0.25),
    ],
)
def test_density(options, density):
    assert Single(**options).density == pytest.approx(density, rel=1e-12)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 60])
def test_sparsity_is_checked(sparsity):
    with pytest.raises(InvalidValue, match=r"in \[0, 1\)"):
        Single(sparsity=sparsity)


def test_sparsity_against_the_pattern():
    with pytest.raises(InvalidValue, match=r"contradicts the pattern 1:4, which implies 0\.75"):
        Single(sparsity=0.5, pattern=NM(1, 4))


def test_allocation_against_the_pattern():
    with pytest.raises(InvalidValue, match="allocation ERK contradicts the pattern 2:4"):
        Single(pattern=NM(2, 4), allocation=ERK())


def test_keeping_leaves_positive_zeros_even_of_nan():
    weight = torch.tensor([[-1.0, float("nan"), float("inf"), -2.0]])
    pruned = Pruned.keeping(weight, torch.tensor([[False, False, False, True]]))
    assert pruned.weight.tolist() == [[0.0, 0.0, 0.0, -2.0]]
    assert torch.signbit(pruned.weight).tolist() == [[False, False, False, True]]


def test_globally_shares_one_budget():
    weights = {"a": torch.tensor([[1.0, -5.0]]), "b": torch.tensor([[4.0, 2.0, 3.0, 0.5]])}
    pruned = Wide(sparsity=0.5).prune(weights, None)
    assert pruned["a"].weight.tolist() == [[0.0, -5.0]]
    assert pruned["b"].mask.tolist() == [[True, False, True, False]]


def test_globally_with_a_pattern_that_has_no_global_form():
    with pytest.raises(InvalidValue, match="no model-wide form"):
        Wide(pattern=Channels()).prune({"a": torch.ones(2, 2)}, None)


def test_a_missing_statistic_names_the_layer():
    with pytest.raises(MissingStatistic, match="fc1: no InputNorm of its input"):
        Layer(name="fc1", density=0.5)[InputNorm]


def test_a_layer_has_its_own_stream():
    first = torch.rand(4, generator=Layer(name="a", density=0.5).generator())
    again = torch.rand(4, generator=Layer(name="a", density=0.1).generator())
    other = torch.rand(4, generator=Layer(name="b", density=0.5).generator())
    reseeded = torch.rand(4, generator=Layer(name="a", density=0.5, seed=1).generator())
    assert torch.equal(first, again)
    assert not torch.equal(first, other) and not torch.equal(first, reseeded)


def test_methods_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Single().sparsity = 0.3
    assert dataclasses.replace(Single(), pattern=Unstructured(per="row")) != Single()
