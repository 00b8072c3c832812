import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.lab.choice import (
    Candidate,
    check_max_drop,
    choose,
    find,
    geometric_mean,
    parse_share,
    relative_drop,
)
from sparsecraft.lab.evidence.paired import OVER_EXAMPLES, Interval, examples_needed
from sparsecraft.lab.report.values import percent, size


def drop(estimate: float, reach: float = 0.0, n: int = 500) -> Interval:
    return Interval(estimate, estimate - reach, estimate + reach, 0.95, n, OVER_EXAMPLES)


def arm(name: str, validation: Interval, **changes) -> Candidate:
    values = {"test": validation, "speed": 1.0, "bytes": 100, "sparsity": 0.0} | changes
    speed = values["speed"]
    ends = {"speed_low": speed, "speed_high": speed} if speed is not None else {}
    return Candidate(arm=name, label=name, validation=validation, **ends | values)


DENSE = arm("dense", drop(0.0), test=drop(0.0, n=1100))


def test_the_fastest_within_the_budget_wins_not_the_fastest():
    fast = arm("fast", drop(0.06, 0.01), speed=4.0)
    fair = arm("fair", drop(0.01, 0.01), speed=2.0, bytes=25)
    choice = choose([DENSE, fast, fair], 0.03)
    assert choice.winner == "fair"
    assert choice.findings == {"dense": "within", "fast": "beyond", "fair": "within"}
    assert choice.met
    assert choice.confirmed
    kept = f"Keep fair: 2.00x the speed of dense here, {size(25)}"
    assert any(line.startswith(kept) for line in choice.lines)


def test_the_upper_end_decides_not_the_estimate():
    wide = arm("wide", drop(0.01, 0.03), speed=4.0)
    choice = choose([DENSE, wide], 0.03)
    assert choice.findings["wide"] == "undecided"
    assert choice.winner == "dense"


@pytest.mark.parametrize(
    ("interval", "finding"),
    [
        (drop(0.02, 0.009), "within"),
        (drop(0.02, 0.01), "undecided"),  # the end on the budget is not under it
        (drop(0.04, 0.01), "undecided"),
        (drop(0.041, 0.01), "beyond"),
        (drop(-0.5, 0.2), "within"),
        (Interval(0.0, -math.inf, math.inf, 0.95, 1, OVER_EXAMPLES), "undecided"),
    ],
)
def test_what_an_interval_says(interval, finding):
    assert find(interval, 0.03) == finding


def test_an_undecided_arm_that_would_win_is_named_with_the_examples_it_needs():
    wide = arm("wide", drop(0.02, 0.03), speed=4.0)
    lines = choose([DENSE, wide], 0.03).lines
    needed = examples_needed(wide.validation, 0.03)
    assert needed == 4501
    assert any(f"about {needed:,} validation examples" in line and "wide" in line for line in lines)


def test_an_undecided_arm_that_would_lose_anyway_is_not_named():
    slow = arm("slow", drop(0.02, 0.03), speed=0.5)
    assert not any("slow" in line for line in choose([DENSE, slow], 0.03).lines)


def test_an_undecided_arm_on_the_budget_gets_no_number():
    level = arm("level", drop(0.03, 0.01), speed=4.0)
    assert any("no number of examples" in line for line in choose([DENSE, level], 0.03).lines)


def test_an_undecided_arm_near_the_budget_gets_a_bound_and_no_absurd_number():
    near = arm("near", drop(0.0299, 0.03), speed=4.0)
    lines = choose([DENSE, near], 0.03).lines
    assert examples_needed(near.validation, 0.03) > 100 * near.validation.n
    assert any(f"over {100 * near.validation.n:,} validation examples" in line for line in lines)


def test_the_test_half_reports_and_does_not_choose():
    unlucky = arm("unlucky", drop(0.01, 0.01), speed=2.0, test=drop(0.04, 0.01, n=1100))
    choice = choose([DENSE, unlucky], 0.03)
    assert choice.winner == "unlucky"
    assert choice.met
    assert not choice.confirmed
    assert any("over 1100 examples" in line for line in choice.lines)
    assert any("does not confirm" in line and percent(0.05) in line for line in choice.lines)


@given(st.integers(0, 3), st.floats(-0.5, 0.5))
def test_no_test_figure_changes_the_winner(index, estimate):
    arms = [
        DENSE,
        arm("a", drop(0.01, 0.01), speed=2.0),
        arm("b", drop(0.02, 0.005), speed=1.5),
        arm("c", drop(0.0, 0.02), speed=1.9, bytes=10),
    ]
    before = choose(arms, 0.03).winner
    arms[index] = dataclasses.replace(arms[index], test=drop(estimate, 0.1))
    assert choose(arms, 0.03).winner == before


def test_speeds_that_cannot_be_told_apart_are_decided_by_size_then_quality():
    big = arm("big", drop(0.0, 0.01), speed=2.02, speed_low=1.9, speed_high=2.1, bytes=90)
    small = arm("small", drop(0.01, 0.01), speed=2.0, speed_low=1.85, speed_high=2.05, bytes=25)
    better = dataclasses.replace(small, arm="better", label="better", validation=drop(0.0, 0.01))
    slower = arm("slower", drop(0.0, 0.01), speed=1.7, speed_low=1.6, speed_high=1.8, bytes=1)
    assert choose([DENSE, big, small, slower], 0.03).winner == "small"
    assert choose([DENSE, big, small, better, slower], 0.03).winner == "better"


def test_a_few_bytes_do_not_outweigh_quality():
    worse = arm("worse", drop(0.02, 0.005), bytes=9999)
    better = arm("better", drop(0.01, 0.005), bytes=10000)
    arms = [dataclasses.replace(DENSE, bytes=20000), worse, better]
    assert {choose(arms, 0.03, each).winner for each in ("speed", "size", "sparsity")} == {"better"}


def test_preferences():
    fast = arm("fast", drop(0.01, 0.01), speed=3.0, bytes=50)
    small = arm("small", drop(0.01, 0.01), speed=2.0, bytes=10)
    sparse = arm("sparse", drop(0.01, 0.01), speed=1.0, bytes=60, sparsity=0.7)
    arms = [DENSE, fast, small, sparse]
    winners = {each: choose(arms, 0.03, each).winner for each in ("speed", "size", "sparsity")}
    assert winners == {"speed": "fast", "size": "small", "sparsity": "sparse"}


def test_keeping_dense_is_an_answer():
    choice = choose([DENSE, arm("bad", drop(0.5, 0.1), speed=9.0)], 0.03)
    assert choice.winner == "dense"
    assert choice.lines[-1].startswith("Keep dense: ")
    assert "speed of dense" not in choice.lines[-1]


def test_a_sparse_winner_without_speed_up_says_so():
    small = arm("small", drop(0.0, 0.01), speed=1.0, bytes=50)
    lines = choose([DENSE, small], 0.03, "size").lines
    assert lines[-1] == "No speed-up was measured here."


def test_nothing_within_the_budget():
    choice = choose([arm("bad", drop(0.5, 0.1))], 0.03)
    assert choice.winner is None
    assert not choice.met
    assert any("Nothing is chosen" in line for line in choice.lines)


def test_arms_that_were_not_timed_lose_to_those_that_were():
    untimed = arm("untimed", drop(0.0), speed=None, bytes=1)
    assert choose([DENSE, untimed], 0.03).winner == "dense"


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.1, 3.0, math.nan])
def test_budgets_out_of_range(bad):
    with pytest.raises(InvalidValue):
        choose([DENSE], bad)


def test_a_percentage_as_a_number_gets_a_hint():
    with pytest.raises(InvalidValue, match=r"write 3% or 0\.03"):
        check_max_drop(3.0)


def test_unknown_preference_and_no_candidates():
    with pytest.raises(UnknownName, match="'speed'"):
        choose([DENSE], 0.03, "sped")  # type: ignore[arg-type]
    with pytest.raises(InvalidValue, match="nothing to choose"):
        choose([], 0.03)


def test_shares():
    assert parse_share("3%") == parse_share(" 0.03 ") == parse_share(0.03) == 0.03
    with pytest.raises(InvalidValue, match="3%"):
        parse_share("three")


def test_a_drop_is_what_is_lost_whichever_way_is_better():
    dense = np.array([0.8, 0.6, 1.0, 0.6])
    worse = dense * 0.9
    assert relative_drop(dense, worse, "mean", True).estimate == pytest.approx(0.1)
    assert relative_drop(dense, worse, "mean", False).estimate == pytest.approx(-0.1)


def test_the_drop_of_a_perplexity_is_its_relative_rise():
    losses = np.log([2.0, 8.0, 4.0])  # perplexity 4
    found = relative_drop(losses, losses + np.log(1.1), "perplexity", False)
    assert found.estimate == pytest.approx(0.1)
    assert found.low == pytest.approx(0.1)
    assert found.high == pytest.approx(0.1)


def test_dense_beside_itself_has_no_drop():
    values = np.linspace(0.1, 1, 50)
    found = relative_drop(values, values, "mean", True)
    assert (found.low, found.estimate, found.high) == (0, 0, 0)


def test_a_resample_that_scores_nothing_breaks_nothing():
    dense = np.array([1.0, 0.0, 0.0, 0.0])
    found = relative_drop(dense, np.zeros(4), "mean", True)
    assert (found.estimate, found.low, found.high) == (1.0, 0.0, 1.0)


def test_a_dense_model_that_scores_nothing():
    with pytest.raises(InvalidValue, match="scores 0"):
        relative_drop(np.zeros(5), np.ones(5), "mean", True)


def test_coverage_of_the_budget_by_simulation():
    """An arm whose true drop is just beyond the budget passes in about 2.5 % of comparisons."""
    draws = np.random.default_rng(0)
    passed = 0
    for _ in range(200):
        dense = draws.random(300)
        arm_values = dense * (1 - 0.05) + draws.normal(0, 0.05, 300)
        passed += find(relative_drop(dense, arm_values, "mean", True), 0.05) == "within"
    assert passed <= 12


def test_the_geometric_mean_treats_half_and_double_alike():
    assert geometric_mean([0.5, 2.0]) == pytest.approx(1.0)
