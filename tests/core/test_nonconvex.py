"""Penalties that leave large entries alone: each prox against a grid, and what the papers state."""

import math
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.penalties import (
    CEL0,
    L0,
    L1,
    MCP,
    SCAD,
    Log,
    Lq,
    by_name,
    describe_penalty,
    firm_threshold,
    nonconvex,
    without_half,
)

PENALTIES = [
    L1(strength=0.7),
    L0(strength=0.7),
    Lq(strength=0.7, q=0.5),
    Lq(strength=0.7, q=2 / 3),
    Lq(strength=0.7, q=0.2),
    Lq(strength=0.7, q=0.9),
    Lq(strength=0.7, q=1),
    Log(strength=0.7, scale=2.0),
    Log(strength=0.7, scale=0.1),
    MCP(strength=0.7, reach=1.5),
    SCAD(strength=0.7, reach=2.5),
    CEL0(strength=0.7),
    CEL0(strength=0.7, norm=1.7),
]
STEPS = (0.05, 0.3, 1.0, 1.6, 4.0)
X = torch.linspace(-4, 4, 81, dtype=torch.float64)


GRID = torch.linspace(-4, 4, 801, dtype=torch.float64)


@cache
def values(penalty):
    """R of each point of the grid."""
    return torch.stack([penalty.value(each) for each in GRID])


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
def test_no_point_of_a_grid_costs_less_than_the_prox(penalty, step):
    z = penalty.prox(X, step)
    own = torch.stack([penalty.value(each) for each in z])
    reached = (z - X).square() / 2 + step * own
    least = ((GRID - X[:, None]).square() / 2 + step * values(penalty)).amin(1)
    assert bool((reached <= least + 1e-9).all())
    assert bool((reached < X.square() / 2 + 1e-12).all())


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
def test_a_prox_is_odd_and_monotone_and_never_grows(penalty, step):
    z = penalty.prox(X, step)
    assert torch.equal(z, -penalty.prox(-X, step))
    assert bool((z.diff() >= -1e-12).all())
    assert bool((z.abs() <= X.abs() + 1e-12).all())


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
def test_the_threshold_is_where_the_prox_leaves_zero(penalty, step):
    at = penalty.threshold(step)
    near = torch.tensor([at * (1 - 1e-9), at * (1 + 1e-6)], dtype=torch.float64)
    below, above = penalty.prox(near, step)
    assert below == 0
    assert above > 0


@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
def test_a_step_of_zero_changes_nothing(penalty):
    assert torch.allclose(penalty.prox(X, 0.0), X, atol=1e-14)


@given(q=st.floats(0.05, 0.95), weight=st.floats(1e-3, 10), size=st.floats(1.0001, 50))
def test_newton_finds_the_stationary_point(q, weight, size):
    penalty = Lq(strength=weight, q=q)
    x = torch.tensor([size * penalty.threshold(1.0)], dtype=torch.float64)
    z = penalty.prox(x, 1.0)
    slope = z - x + weight * q * z.pow(q - 1)
    assert float(slope.abs()) <= 1e-9 * float(x)
    assert float(z) >= (2 * weight * (1 - q)) ** (1 / (2 - q)) * (1 - 1e-9)


@pytest.mark.parametrize("q", [1 / 2, 2 / 3])
def test_closed_forms_are_what_newton_finds(q):
    x = Lq(q=q).threshold(0.3) * torch.linspace(1.0001, 30, 200, dtype=torch.float64)
    assert torch.allclose(Lq(q=q).prox(x, 0.3), nonconvex._newton(x, 0.3, q), atol=1e-12)


def test_half_has_the_threshold_of_the_paper():
    g = 0.2
    assert without_half("half", g).threshold(1.0) == pytest.approx(54 ** (1 / 3) / 4 * g ** (2 / 3))
    assert without_half("hard", g).threshold(1.0) == pytest.approx(math.sqrt(g))


def test_cel0_is_an_mcp_and_ends_as_the_hard_threshold():
    norm, strength = 1.3, 0.4
    mcp = MCP(strength=norm * math.sqrt(2 * strength), reach=1 / norm**2)
    cel0 = CEL0(strength=strength, norm=norm)
    assert cel0.value(X) == pytest.approx(float(mcp.value(X)))
    for step in (0.1, 0.5, 1.0):
        assert torch.allclose(cel0.prox(X, step), mcp.prox(X, step))
    for step in (1 / norm**2, 1.0):
        assert torch.equal(cel0.prox(X, step), L0(strength=strength).prox(X, step))
    nearly = cel0.prox(X, (1 - 1e-9) / norm**2)
    assert torch.allclose(nearly, L0(strength=strength).prox(X, 1 / norm**2), atol=1e-6)


def test_cel0_takes_the_strength_itself_not_times_the_step():
    strength, step = 0.27, 0.05
    expected = (abs(0.7) - math.sqrt(2 * strength) * step) / (1 - step)
    found = CEL0(strength=strength).prox(torch.tensor([0.7], dtype=torch.float64), step)
    assert float(found) == pytest.approx(min(0.7, expected))
    assert float(found) > 0.69


def test_columns_have_their_own_norms():
    norms = torch.tensor([1.0, 2.0], dtype=torch.float64)
    x = torch.linspace(-2, 2, 12, dtype=torch.float64).view(6, 2)
    bound = CEL0(strength=0.3).for_columns(norms)
    single = [CEL0(strength=0.3, norm=float(each)) for each in norms]
    expected = torch.stack([p.prox(x[:, i], 0.2) for i, p in enumerate(single)], 1)
    assert torch.allclose(bound.prox(x, 0.2), expected)
    assert bound.value(x) == pytest.approx(
        sum(float(p.value(x[:, i])) for i, p in enumerate(single))
    )
    assert CEL0().for_columns(torch.ones(2)) == CEL0()


def test_cel0_counts_entries_beyond_its_reach():
    assert float(CEL0(strength=0.5).value(torch.tensor([0.0, 1.0, -7.0]))) == 1.0


def test_firm_threshold_by_hand():
    x = torch.tensor([0.5, 1.0, 1.5, 2.0, -3.0])
    assert firm_threshold(x, 1.0, 2.0).tolist() == [0.0, 0.0, 1.0, 2.0, -3.0]
    assert firm_threshold(x, 4.0, 1.0).tolist() == [0.0, 0.0, 0.0, 0.0, -3.0]


def test_scad_by_hand():
    x = torch.tensor([1.0, 2.0, 3.0, 5.0])
    assert SCAD(reach=4.0).prox(x, 1.0).tolist() == [0.0, 1.0, 2.5, 5.0]


@pytest.mark.parametrize(
    "penalty", [*PENALTIES, by_name("abstopk", k=3), by_name("topk", k=2)], ids=str
)
def test_a_penalty_is_made_again_from_its_description(penalty):
    assert by_name(**describe_penalty(penalty)) == penalty


def test_names_in_any_case_and_the_papers_own():
    assert by_name("CEL0", strength=0.1) == CEL0(strength=0.1)
    assert by_name("soft") == L1()
    assert by_name("firm", reach=2.0) == MCP(reach=2.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Lq(q=0), "q=0 is not allowed: give a number in (0, 1]; for q = 0 use L0"),
        (lambda: Lq(q=1.5), "q=1.5 is not allowed"),
        (lambda: Lq(strength=-1), "strength=-1 is not allowed"),
        (lambda: Log(scale=0), "scale=0 is not allowed: give a number above 0"),
        (lambda: MCP(reach=-1), "reach=-1 is not allowed: give a number above 0"),
        (lambda: SCAD(reach=2), "reach=2 is not allowed: give a number above 2"),
        (lambda: CEL0(norm=0), "norm=0 is not allowed"),
        (lambda: CEL0().prox(X, -1.0), "step=-1.0 is not allowed"),
        (lambda: SCAD().prox(X, math.inf), "step=inf is not allowed"),
        (lambda: by_name("topk"), "the penalty 'topk' needs k"),
    ],
)
def test_what_is_not_allowed_is_said(make, message):
    with pytest.raises(InvalidValue) as caught:
        make()
    assert message in str(caught.value)


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean 'cel0'"):
        by_name("celo")
    with pytest.raises(UnknownName, match="setting of the penalty 'l1' 'q'"):
        by_name("l1", q=0.5)
