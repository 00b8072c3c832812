"""Budgets by rank: sums, bounds, rounding, and the fit of the law."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.core.errors import BudgetError, InvalidValue
from sparsecraft.core.seeds import generator
from sparsecraft.core.zipf import (
    STEEPEST,
    ZipfBudget,
    clipped_shares,
    largest_remainder,
    ranks_of,
    under_use,
)

positive = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12)


@given(weights=positive, share=st.floats(0, 1), lowest=st.integers(0, 3), span=st.integers(0, 9))
def test_budgets_sum_and_keep_their_bounds(weights, share, lowest, span):
    n, highest = len(weights), lowest + span
    total = n * lowest + round(share * n * span)
    counts = largest_remainder(torch.tensor(weights), total, lowest=lowest, highest=highest)
    assert int(counts.sum()) == total
    assert lowest <= int(counts.min()) and int(counts.max()) <= highest
    quotas = clipped_shares(torch.tensor(weights), total, lowest=lowest, highest=highest)
    assert float((counts - quotas).abs().max()) < 1 + 1e-6


@given(weights=positive, share=st.floats(0.01, 0.99))
def test_shares_within_the_bounds_are_in_proportion(weights, share):
    weights = torch.tensor(weights).double()
    total = share * len(weights)
    shares = clipped_shares(weights, total, lowest=0.0, highest=1.0)
    assert float(shares.sum()) == pytest.approx(total)
    ratio = (shares / weights)[shares < 1 - 1e-12]
    assert torch.allclose(ratio, ratio[:1].expand_as(ratio))
    if len(ratio):  # what is cut off would exceed the bound
        assert bool((weights[shares >= 1 - 1e-12] * ratio[0] >= 1 - 1e-9).all())


def test_largest_remainder_by_hand():
    # Quotas 4.2, 3.3, 1.5: the ones left over after 4, 3, 1 go to the remainder 0.5.
    counts = largest_remainder(torch.tensor([4.2, 3.3, 1.5]).double(), 9, highest=9)
    assert counts.tolist() == [4, 3, 2]
    # Equal remainders: the first.
    assert largest_remainder(torch.ones(3), 4, highest=9).tolist() == [2, 1, 1]
    # A tail below one is lifted to one, and the rest share what is left in proportion.
    assert largest_remainder(
        torch.tensor([100.0, 50.0, 1.0, 1.0]), 8, lowest=1, highest=9
    ).tolist() == [
        4,
        2,
        1,
        1,
    ]
    # A head above the rows is cut, and gives the rest to the others.
    assert largest_remainder(torch.tensor([100.0, 2.0, 1.0]), 8, lowest=1, highest=5).tolist() == [
        5,
        2,
        1,
    ]


def test_budgets_that_cannot_be_met():
    with pytest.raises(BudgetError, match=r"a budget of 2 for 3 features.*from 3 to 15"):
        largest_remainder(torch.ones(3), 2, lowest=1, highest=5)
    with pytest.raises(BudgetError, match="from 0 to 15"):
        largest_remainder(torch.ones(3), 16, highest=5)
    with pytest.raises(InvalidValue, match="positive and finite"):
        largest_remainder(torch.tensor([1.0, -1.0]), 2, highest=5)


@pytest.mark.parametrize(("exponent", "offset"), [(1.0, 0.0), (0.8, 5.0), (1.6, 40.0), (0.0, 0.0)])
def test_the_fit_finds_the_law(exponent, offset):
    law = ZipfBudget(exponent=exponent, offset=offset)
    density = law.weights(400)
    shuffled = density[torch.randperm(400, generator=generator(0, "zipf"))]
    with_dead = torch.cat([torch.zeros(30).double(), shuffled])
    found = ZipfBudget.fit(with_dead)
    assert found.exponent == pytest.approx(exponent, abs=0.01)
    assert torch.allclose(
        found.weights(400) / found.weights(400)[0], density / density[0], rtol=0.01
    )


def test_the_fit_is_least_squares_in_logs():
    noise = torch.randn(200, generator=generator(1, "zipf")).double()
    density = (ZipfBudget(exponent=0.9, offset=3.0).weights(200).log() + 0.1 * noise).exp()
    ordered = density.sort(descending=True).values.log()

    def error(law):
        logs = law.weights(200).log()
        return float(((ordered - ordered.mean() - logs + logs.mean()) ** 2).sum())

    best = ZipfBudget.fit(density)
    for change in ((0.02, 0.0), (-0.02, 0.0), (0.0, 0.3), (0.0, -0.3), (0.05, 0.5)):
        other = ZipfBudget(
            exponent=best.exponent + change[0], offset=max(best.offset + change[1], 0.0)
        )
        assert error(best) <= error(other)


def test_densities_sum_to_k_and_stay_below_one():
    densities = ZipfBudget(exponent=1.0).densities(1000, k=64)
    assert float(densities.sum()) == pytest.approx(64)
    assert float(densities.max()) == 1.0


def test_too_few_features_fire():
    with pytest.raises(InvalidValue, match="2 of 4 features fire"):
        ZipfBudget.fit(torch.tensor([0.5, 0.1, 0.0, 0.0]))
    with pytest.raises(InvalidValue, match="exponent=-1 is not allowed"):
        ZipfBudget(exponent=-1)


def test_ranks_and_under_use():
    assert ranks_of(torch.tensor([0.1, 0.3, 0.1, 0.2])).tolist() == [2, 0, 3, 1]
    use = under_use(torch.tensor([0.0, 0.1, 0.2, 0.4]), torch.tensor([0.2, 0.2, 0.2, 0.2]))
    assert use.tolist() == pytest.approx([1.0, 0.5, 0.0, 0.0])


@given(
    logs=st.lists(st.floats(-40, 0), min_size=3, max_size=40),
    k=st.floats(0.1, 2.5),
)
def test_any_densities_have_a_law_with_usable_weights(logs, k):
    law = ZipfBudget.fit(torch.tensor(logs, dtype=torch.float64).exp())
    assert 0 <= law.exponent <= STEEPEST
    for features in (len(logs), 10**6):
        weights = law.weights(features)
        assert float(weights.min()) > 0
        assert bool(torch.isfinite(weights).all())
    assert float(law.densities(len(logs), k).sum()) == pytest.approx(k)


def test_a_bounded_exponent_has_the_offset_that_suits_it():
    """What falls off exponentially would have an exponent without bound."""
    density = torch.exp(-torch.arange(300.0).double() / 10)
    law, logs = ZipfBudget.fit(density), density.log()
    assert law.exponent == STEEPEST

    def error(offset):
        fitted = ZipfBudget(exponent=STEEPEST, offset=offset).weights(300).log()
        return float(((logs - logs.mean() - fitted + fitted.mean()) ** 2).sum())

    assert error(law.offset) <= min(error(law.offset * 0.98), error(law.offset * 1.02 + 0.1))
