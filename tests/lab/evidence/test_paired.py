import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.core.errors import InvalidValue
from sparsecraft.lab.evidence.paired import (
    OVER_EXAMPLES,
    OVER_SEEDS,
    Interval,
    examples_needed,
    paired_bootstrap,
    paired_t,
    perplexity,
    resample,
)

NUMBERS = st.floats(-1e3, 1e3)


def pairs(min_size=1):
    return st.lists(st.tuples(NUMBERS, NUMBERS), min_size=min_size, max_size=30).map(
        lambda rows: np.array(rows).T
    )


def test_paired_t_by_hand():
    interval = paired_t([1.0, 2.0, 3.0, 4.0, 5.0])  # mean 3, sd sqrt(2.5), t 2.776
    reach = 2.776445 * math.sqrt(2.5 / 5)
    assert interval.estimate == 3.0
    assert interval.low == pytest.approx(3 - reach, abs=1e-5)
    assert interval.high == pytest.approx(3 + reach, abs=1e-5)
    assert interval.half_width == pytest.approx(reach, abs=1e-5)
    assert (interval.level, interval.n, interval.method) == (0.95, 5, OVER_SEEDS)


def test_one_seed_or_example_knows_no_spread():
    for interval in (paired_t([0.3]), paired_bootstrap([0.5], [0.2])):
        assert (interval.low, interval.high, interval.n) == (-math.inf, math.inf, 1)
        assert interval.estimate == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("differences", "says"),
    [([], "empty"), ([1.0, math.nan], "index 1 is nan"), ([[1.0], [2.0]], "shape")],
)
def test_paired_t_refuses(differences, says):
    with pytest.raises(InvalidValue, match=says):
        paired_t(differences)


@given(st.lists(NUMBERS, min_size=1, max_size=12), st.sampled_from([0.5, 0.8, 0.95]))
def test_paired_t_laws(differences, level):
    interval = paired_t(differences, level)
    flipped = paired_t([-d for d in differences], level)
    wider = paired_t(differences, 0.99)
    assert interval.low <= interval.estimate <= interval.high
    assert (flipped.low, flipped.high) == (-interval.high, -interval.low)
    assert wider.low <= interval.low
    assert wider.high >= interval.high


@given(pairs(), st.integers(0, 5))
def test_bootstrap_laws(arms, seed):
    a, b = arms
    interval = paired_bootstrap(a, b, resamples=200, seed=seed)
    flipped = paired_bootstrap(b, a, resamples=200, seed=seed)
    assert interval.low <= interval.estimate <= interval.high
    assert flipped.estimate == -interval.estimate
    assert flipped.low == pytest.approx(-interval.high, abs=1e-9)
    assert flipped.high == pytest.approx(-interval.low, abs=1e-9)
    assert paired_bootstrap(a, b, resamples=200, seed=seed) == interval


def test_the_same_examples_are_drawn_for_both_arms():
    b = np.random.default_rng(0).normal(size=200)
    interval = paired_bootstrap(b + 0.5, b)
    assert interval.half_width < 1e-12  # unpaired resampling would give about 0.2
    assert interval.estimate == pytest.approx(0.5)


def test_bootstrap_ends_for_a_binomial_by_hand():
    # 100 differences, half 1 and half 0: the mean has sd 0.05 and a normal shape.
    a = np.repeat([1.0, 0.0], 50)
    interval = paired_bootstrap(a, np.zeros(100), resamples=4000)
    assert interval.low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.011)
    assert interval.high == pytest.approx(0.5 + 1.96 * 0.05, abs=0.011)
    assert (interval.n, interval.method) == (100, OVER_EXAMPLES)


def test_vectorised_and_plain_statistics_agree():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 40))
    fast = paired_bootstrap(a, b, perplexity, resamples=100)
    plain = paired_bootstrap(a, b, lambda x: np.exp(x.mean()), resamples=100)
    assert (fast.low, fast.high) == pytest.approx((plain.low, plain.high))
    assert fast.estimate == pytest.approx(np.exp(a.mean()) - np.exp(b.mean()))


def test_a_statistic_may_need_several_values_for_each_example():
    rng = np.random.default_rng(2)
    tokens = rng.integers(1, 20, size=50)
    losses = rng.uniform(1, 3, size=50)

    def corpus_perplexity(rows):
        return np.exp((rows[:, 0] * rows[:, 1]).sum() / rows[:, 1].sum())

    interval = paired_bootstrap(
        np.stack([losses + 0.1, tokens], 1),
        np.stack([losses, tokens], 1),
        corpus_perplexity,
        combine=lambda a, b: a / b,
        resamples=50,
    )
    assert interval.low == pytest.approx(math.exp(0.1))
    assert interval.high == pytest.approx(math.exp(0.1))


def test_relative_drop_is_the_share_that_arm_b_loses():
    interval = paired_bootstrap([1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0], combine="relative drop")
    assert interval.estimate == 0.25
    assert interval.low == 0.0
    assert interval.high <= 1.0


def test_a_biased_statistic_keeps_its_estimate_in_the_interval():
    # Every resample repeats examples, so none has as many distinct values as the data.
    interval = paired_bootstrap(np.arange(20), np.zeros(20), lambda x: len(np.unique(x)))
    assert interval.estimate == interval.high == 19
    assert interval.low < 12


def test_large_evaluations_are_drawn_in_blocks(monkeypatch):
    arms = np.random.default_rng(3).normal(size=(2, 30))
    monkeypatch.setattr("sparsecraft.lab.evidence.paired._BLOCK", 90)  # 3 resamples at a time
    draws = resample(arms, np.mean, resamples=10, seed=0)
    assert draws.shape == (10, 2)
    assert len(np.unique(draws[:, 0])) == 10


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"b": [1.0]}, "same examples"),
        ({"a": [1.0, math.inf]}, "finite"),
        ({"combine": "ratio"}, "'relative drop'"),
        ({"a": [0.0, 0.0], "combine": "relative drop"}, "divides"),
        ({"combine": lambda a, b: math.nan}, "not finite in 2000 of 2000"),
        ({"level": 95}, "level is 95"),
        ({"resamples": 0}, "at least 1"),
    ],
)
def test_bootstrap_refuses(change, says):
    with pytest.raises(InvalidValue, match=says):
        paired_bootstrap(**({"a": [1.0, 2.0], "b": [2.0, 2.0]} | change))


@pytest.mark.parametrize("draw", ["normal", "exponential"])
def test_bootstrap_coverage_is_roughly_nominal(draw):
    rng = np.random.default_rng(7)
    truth = {"normal": 0.0, "exponential": 1.0}[draw]
    covered = 0
    for trial in range(400):
        b = rng.normal(size=60)
        a = b + getattr(rng, draw)(size=60)
        interval = paired_bootstrap(a, b, resamples=400, seed=trial)
        covered += interval.low <= truth <= interval.high
    assert 0.90 <= covered / 400 <= 0.98


def test_t_coverage_is_nominal_for_five_seeds():
    draws = np.random.default_rng(8).normal(size=(2000, 5))
    covered = sum(paired_t(d).low <= 0 <= paired_t(d).high for d in draws)
    assert 0.935 <= covered / 2000 <= 0.965


@given(st.floats(0.1, 10), st.floats(0.01, 5), st.integers(2, 1000), st.sampled_from([-1, 1]))
def test_examples_needed_is_the_least_number_that_excludes_the_target(reach, distance, n, side):
    needed = examples_needed(Interval(0.0, -reach, reach, 0.95, n, OVER_EXAMPLES), side * distance)
    assert reach * math.sqrt(n / needed) < distance * (1 + 1e-9)
    if needed > 1:
        assert reach * math.sqrt(n / (needed - 1)) >= distance * (1 - 1e-9)


def test_examples_needed_uses_the_end_that_faces_the_target():
    interval = Interval(1.0, 0.0, 5.0, 0.95, 100, OVER_EXAMPLES)
    assert examples_needed(interval, 0.5) == 401  # below: reach 1 to 0.5
    assert examples_needed(interval, 3.0) == 401  # above: reach 4 to 2
    assert examples_needed(interval, 1.0) is None
    assert examples_needed(interval, 1.0 + 1e-16) is None
    assert examples_needed(paired_t([1.0]), 0.0) is None  # infinite: nothing to scale
    assert examples_needed(Interval(1.0, 0.5, 1.5, 0.95, 100, OVER_EXAMPLES), 0.0) == 26


def test_an_interval_contains_its_estimate():
    with pytest.raises(InvalidValue, match="does not contain"):
        Interval(2.0, 0.0, 1.0, 0.95, 5, OVER_SEEDS)
    assert Interval(0.0, -1.0, 1.0, 0.95, 5, OVER_SEEDS).counted == "5 seeds"
    assert Interval(0.0, -1.0, 1.0, 0.95, 1, OVER_EXAMPLES).counted == "1 example"
