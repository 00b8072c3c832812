"""Penalties with a budget: the prox table of AbsTopK as code, checked for optimality."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.penalties import L0, L1, AbsTopK, NonNegativeL0, NonNegativeL1, TopK
from sparsecraft.core.seeds import generator

STRENGTH = 0.3
ELEMENTWISE = {
    "relu": (NonNegativeL1, lambda u: max(u - STRENGTH, 0.0)),
    "jumprelu": (NonNegativeL0, lambda u: u if u > math.sqrt(2 * STRENGTH) else 0.0),
    "soft": (L1, lambda u: math.copysign(max(abs(u) - STRENGTH, 0.0), u)),
    "hard": (L0, lambda u: u if abs(u) > math.sqrt(2 * STRENGTH) else 0.0),
}
numbers = st.floats(-4, 4, allow_nan=False).map(lambda x: round(x, 3))
rows = st.lists(numbers, min_size=5, max_size=5).map(lambda x: torch.tensor([x]).double())
# Few distinct values, so that ties are common.
tied = st.lists(st.integers(-2, 2), min_size=12, max_size=12).map(
    lambda x: torch.tensor(x).double().view(3, 4)
)


def distance(z, u):
    return float(((z - u) ** 2).sum() / 2)


def magnitudes(u, signed):
    return u.abs() if signed else u.clamp_min(0)


@pytest.mark.parametrize("name", ELEMENTWISE)
@given(u=numbers)
def test_elementwise_proxes_are_the_table(name, u):
    kind, formula = ELEMENTWISE[name]
    penalty = kind(strength=STRENGTH)
    found = penalty.prox(torch.tensor([u], dtype=torch.float64), 1.0)
    assert float(found) == pytest.approx(formula(u), abs=1e-12)
    edges = [u, u - STRENGTH, u + STRENGTH, 0.0]
    grid = torch.cat([torch.linspace(-5, 5, 41), torch.tensor(edges)]).double()
    best = min(distance(z, u) + float(penalty.value(z.view(1))) for z in grid)
    assert distance(found, u) + float(penalty.value(found)) <= best + 1e-9


@pytest.mark.parametrize("kind", [TopK, AbsTopK])
@given(u=rows, k=st.integers(1, 5))
def test_selecting_proxes_are_nearest_of_all_codes_with_k_entries(kind, u, k):
    penalty = kind(k=k)
    found = penalty.prox(u)
    assert penalty.value(found) == 0
    for support in itertools.combinations(range(5), k):
        other = torch.zeros_like(u)
        kept = u[:, list(support)]
        other[:, list(support)] = kept if kind.signed else kept.clamp_min(0)
        assert distance(found, u) <= distance(other, u) + 1e-9


@given(u=tied, k=st.integers(1, 3))
def test_counts_are_exact_under_ties(u, k):
    counted = {
        (kind, scope): (kind(k=k, scope=scope).prox(u) != 0)
        for kind in (TopK, AbsTopK)
        for scope in ("token", "batch", "feature")
    }
    for kind in (TopK, AbsTopK):
        used = magnitudes(u, kind.signed) > 0
        assert torch.equal(counted[kind, "token"].sum(1), used.sum(1).clamp(max=k))
        assert int(counted[kind, "batch"].sum()) == min(int(used.sum()), 3 * k)
        assert torch.equal(counted[kind, "feature"].sum(0), used.sum(0).clamp(max=k))


@given(u=rows, k=st.integers(1, 5))
def test_hard_thresholding_is_odd_and_projects(u, k):
    prox = AbsTopK(k=k).prox
    assert torch.equal(prox(-u), -prox(u))
    assert torch.equal(prox(prox(u)), prox(u))


@given(u=tied, k=st.integers(1, 3), scope=st.sampled_from(["token", "batch"]))
def test_abstopk_is_topk_of_mirrored_entries(u, k, scope):
    """Of ties another one may be kept, so rows without them are compared entry by entry."""
    distinct = u + torch.arange(12).double().view(3, 4) / 100
    two_sided = AbsTopK(k=k, scope=scope).prox(distinct)
    mirrored = TopK(k=k, scope=scope).prox(torch.cat([distinct, -distinct], 1))
    assert torch.equal(mirrored[:, :4] - mirrored[:, 4:], two_sided)
    assert int((mirrored != 0).sum()) == int((two_sided != 0).sum())


@settings(max_examples=30)
@given(u=st.lists(numbers, min_size=16, max_size=16))
def test_mutual_choice_is_best_under_the_total_budget(u):
    """The sum of what is kept, by exhaustion on a 4 x 4 batch; no other scope beats it."""
    u = torch.tensor(u).double().view(4, 4)
    mutual = float(TopK(k=1, scope="batch").prox(u).sum())
    best = max(sum(chosen) for chosen in itertools.combinations(u.clamp_min(0).flatten(), 4))
    assert mutual == pytest.approx(float(best))
    assert mutual >= float(TopK(k=1).prox(u).sum()) - 1e-12
    assert mutual >= float(TopK(k=1, scope="feature").prox(u).sum()) - 1e-12


def test_rows_that_are_alike_share_the_budget_alike():
    row = torch.tensor([3.0, -1.0, 2.0, 5.0])
    u = row.expand(4, 4) + torch.arange(4)[:, None] * 1e-3
    for kind in (TopK, AbsTopK):
        assert torch.equal(kind(k=2, scope="batch").prox(u), kind(k=2).prox(u))


@pytest.mark.parametrize("scope", ["token", "batch", "feature"])
def test_rows_may_come_in_any_order(scope):
    u = torch.randn(6, 5, generator=generator(0, "selections"))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    for kind in (TopK, AbsTopK):
        prox = kind(k=2, scope=scope).prox
        assert torch.equal(prox(u[order]), prox(u)[order])


@pytest.mark.parametrize("kind", [TopK, AbsTopK])
def test_half_precision_keeps_k(kind):
    u = torch.randn(50, 64, generator=generator(1, "selections")).bfloat16()
    found = kind(k=8).prox(u)
    assert found.dtype == torch.bfloat16
    assert (found != 0).sum(1).tolist() == [8] * 50


def test_values():
    assert TopK(k=1).value(torch.tensor([[1.0, 0.0], [0.0, 2.0]])) == 0
    assert TopK(k=1).value(torch.tensor([[1.0, 0.5], [0.0, 0.0]])) == math.inf
    assert TopK(k=1, scope="batch").value(torch.tensor([[1.0, 0.5], [0.0, 0.0]])) == 0
    assert TopK(k=1, scope="feature").value(torch.tensor([[1.0, 0.0], [2.0, 0.0]])) == math.inf
    assert TopK(k=1).value(torch.tensor([[-1.0, 0.0]])) == math.inf
    assert AbsTopK(k=1).value(torch.tensor([[-1.0, 0.0]])) == 0


def test_what_is_not_allowed():
    with pytest.raises(InvalidValue, match="k=0 is not allowed: give an integer from 1"):
        AbsTopK(k=0)
    with pytest.raises(InvalidValue, match=r"k=2\.5 is not allowed"):
        TopK(k=2.5)
    with pytest.raises(UnknownName, match=r"Unknown scope 'tokn'\. Did you mean 'token'"):
        TopK(k=1, scope="tokn")
    with pytest.raises(InvalidValue, match="k=5 exceeds the 4 entries of a row"):
        AbsTopK(k=5).prox(torch.ones(2, 4))
    with pytest.raises(InvalidValue, match="k=3 exceeds the 2 rows"):
        AbsTopK(k=3, scope="feature").prox(torch.ones(2, 4))
