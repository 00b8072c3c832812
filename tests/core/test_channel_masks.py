"""Rules for channels: counts, guards, ties between layers, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.core.channel_masks import (
    check_mask,
    choose_channels,
    energy_threshold,
    guarded,
    tied,
)
from sparsecraft.core.errors import BudgetError, InvalidValue, NonFinite, UnknownName
from sparsecraft.core.mask import count

SCALES = {
    "a": torch.tensor([0.9, -0.5, 0.004, 0.3]),
    "b": torch.tensor([0.0, 0.01, -0.02]),
}


def bits(mask):
    return "".join("1" if keep else "0" for keep in mask.tolist())


def layers(draw):
    sizes = draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    value = st.sampled_from([0.0, 0.1, -0.1, 0.5, 1.0])  # few values, so that many tie
    return {str(i): torch.tensor(draw(st.tuples(*[value] * n))) for i, n in enumerate(sizes)}


@given(st.data(), st.floats(0, 0.99))
def test_the_quantile_budget_is_exact_also_under_ties_and_guards(data, sparsity):
    scales = layers(data.draw)
    total = sum(scale.numel() for scale in scales.values())
    if count(total, 1 - sparsity) < len(scales):
        with pytest.raises(BudgetError, match="Lower the sparsity"):
            choose_channels(scales, "quantile", sparsity=sparsity)
        return
    kept = choose_channels(scales, "quantile", sparsity=sparsity)
    assert sum(int(keep.sum()) for keep in kept.values()) == count(total, 1 - sparsity)
    assert all(bool(keep.any()) for keep in kept.values())


@given(st.data(), st.sampled_from(["ratio", "threshold", "energy"]), st.integers(0, 3))
def test_every_rule_keeps_the_minimum_and_the_largest(data, rule, minimum):
    scales = layers(data.draw)
    kept = choose_channels(scales, rule, sparsity=0.8, threshold=0.2, minimum=minimum)
    for name, keep in kept.items():
        assert int(keep.sum()) >= min(minimum, keep.numel())
        if bool(keep.any()) and not bool(keep.all()):
            magnitude = scales[name].abs()
            assert magnitude[keep].min() >= magnitude[~keep].max()


def test_rules_by_hand():
    chosen = choose_channels(SCALES, "threshold", threshold=0.01)
    assert (bits(chosen["a"]), bits(chosen["b"])) == ("1101", "001")
    chosen = choose_channels(SCALES, "ratio", sparsity=0.5)
    assert (bits(chosen["a"]), bits(chosen["b"])) == ("1100", "011")  # 1.5 of 3 rounds up
    chosen = choose_channels(SCALES, "quantile", sparsity=4 / 7)
    assert (bits(chosen["a"]), bits(chosen["b"])) == ("1100", "001")  # the guard's, in the budget
    chosen = choose_channels(SCALES, "quantile", sparsity=4 / 7, minimum=0)
    assert (bits(chosen["a"]), bits(chosen["b"])) == ("1101", "000")


def test_energy_by_hand():
    scale = torch.tensor([4.0, -1.0, 2.0, 0.5], dtype=torch.float64)  # squares: 21.25 in all
    assert energy_threshold(scale, 0.01) == 0.0  # the smallest alone holds 0.0118
    assert energy_threshold(scale, 0.02) == 0.75
    assert energy_threshold(scale, 0.06) == 1.5
    assert energy_threshold(torch.tensor([5e-4, 0.0])) == 1.0
    dead = choose_channels({"a": torch.tensor([2e-4, -5e-4, 0.0])}, "energy")
    assert bits(dead["a"]) == "010"


def test_a_threshold_is_what_goes():
    assert (
        bits(choose_channels({"a": torch.tensor([0.5, 0.25])}, "threshold", threshold=0.25)["a"])
        == "10"
    )


def test_the_guard_keeps_the_largest_and_the_first_of_equals():
    none = torch.zeros(4, dtype=torch.bool)
    assert bits(guarded(none, torch.zeros(4))) == "1000"
    assert bits(guarded(none, torch.tensor([0.1, -0.4, 0.4, 0.2]), 2)) == "0110"
    assert bits(guarded(none, torch.zeros(4), 9)) == "1111"
    assert bits(guarded(none, torch.zeros(4), 0)) == "0000"
    one = torch.tensor([False, False, False, True])
    assert bits(guarded(one, torch.tensor([0.9, 0.0, 0.0, 0.1]), 1)) == "0001"


def masks(*texts):
    return [torch.tensor([letter == "1" for letter in text]) for text in texts]


@pytest.mark.parametrize(
    ("keeps", "voted", "common"),
    [
        (("101001", "001011"), "001001", "101011"),  # two agree on two, three are wanted
        (("1100", "1100"), "1100", "1100"),
        (("1111", "0001"), "1111", "1111"),  # the most careful one removes nothing
        (("0111", "0011", "0001"), "0111", "0111"),
        (("0110", "0011", "1010"), "0010", "1111"),  # no channel has three votes
        (("011",), "011", "011"),
    ],
)
def test_votes(keeps, voted, common):
    assert bits(tied(masks(*keeps))) == voted
    assert bits(tied(masks(*keeps), "intersection")) == common


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4))
def test_a_vote_removes_as_much_as_the_most_careful_member(rows):
    keeps = [torch.tensor(row) for row in rows]
    gone = 5 - int(tied(keeps, minimum=0).sum())
    assert gone >= min(5 - sum(row) for row in rows)
    union = ~torch.stack(keeps).all(0)
    assert not bool((~tied(keeps, minimum=0) & ~union).any())


def test_a_vote_that_would_remove_all_keeps_the_largest_sum():
    opinions = masks("100", "001")
    scales = [torch.tensor([0.5, 0.1, 0.1]), torch.tensor([-0.1, 0.1, 0.9])]
    assert bits(tied(opinions, "vote", scales)) == "001"


def test_what_is_refused():
    with pytest.raises(UnknownName, match="Did you mean 'quantile'"):
        choose_channels(SCALES, "quantil")
    with pytest.raises(NonFinite, match="b: the scale has 1 NaN"):
        choose_channels({**SCALES, "b": torch.tensor([1.0, float("nan")])})
    with pytest.raises(InvalidValue, match="50 % write"):
        choose_channels(SCALES, sparsity=50)
    with pytest.raises(InvalidValue, match="energy=1"):
        choose_channels(SCALES, "energy", energy=1.5)
    with pytest.raises(InvalidValue, match="threshold=-1"):
        choose_channels(SCALES, "threshold", threshold=-1)
    with pytest.raises(InvalidValue, match="minimum=-1"):
        choose_channels(SCALES, minimum=-1)
    with pytest.raises(UnknownName, match="vote"):
        tied(masks("10", "01"), "votes")
    with pytest.raises(InvalidValue, match="cannot share"):
        tied(masks("10", "011"))
    with pytest.raises(InvalidValue, match=r"shape \(3,\), True for"):
        check_mask("norm", torch.ones(3), 3)
