import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.core.errors import InvalidValue
from sparsecraft.lab.evidence.knee import bootstrap_knee, essential_sparsity, knee_over_seeds
from sparsecraft.lab.evidence.paired import perplexity

GRID = np.arange(10) / 10


def planted(at, before, after, dense=1.0, grid=GRID):
    """A curve that loses `before` per unit of sparsity up to `at` and `after` beyond it."""
    return dense - before * np.minimum(grid, at) - after * np.maximum(grid - at, 0)


def test_by_hand():
    knee = essential_sparsity([0, 0.2, 0.4, 0.6, 0.8], [0.9, 0.9, 0.89, 0.59, 0.29], tolerance=0.1)
    # The limit is 0.81: a share of 0.08 / 0.3 of the step from 0.4 to 0.6.
    assert knee.sparsity == pytest.approx(0.4 + 0.2 * 0.08 / 0.3)
    assert knee.bend == 0.4
    assert knee.slope_before == pytest.approx(0.01 / 0.4)
    assert knee.slope_after == pytest.approx(0.6 / 0.4)
    assert knee.slope_ratio == pytest.approx(60)
    assert knee.has_knee
    assert not knee.beyond_grid
    assert knee.describe() == (
        "a knee: within 0.1 of the dense score up to sparsity 0.45, farthest from a straight line "
        "at 0.40, slope 0.025 before and 1.5 after (ratio 60)"
    )


@given(st.integers(2, 7), st.floats(0.0, 0.1), st.floats(0.6, 3.0), st.floats(0.5, 100.0))
def test_a_planted_knee_is_recovered(index, before, after, dense):
    at = GRID[index]
    knee = essential_sparsity(GRID, planted(at, before, after, dense), 0.1, relative=False)
    assert knee.bend == at
    assert knee.has_knee
    assert knee.slope_before == pytest.approx(before, abs=1e-9)
    assert knee.slope_after == pytest.approx(after)
    assert knee.sparsity == pytest.approx(at + (0.1 - before * at) / after)


@given(st.floats(0.2, 0.7))
def test_a_knee_between_grid_points_is_found_within_one_step(at):
    knee = essential_sparsity(GRID, planted(at, 0.0, 1.0))
    assert abs(knee.bend - at) <= 0.1
    assert abs(knee.sparsity - at) <= 0.1


@given(st.floats(0.05, 5.0))
def test_an_even_fall_has_no_knee(slope):
    knee = essential_sparsity(GRID, 1 - slope * GRID)
    assert not knee.has_knee
    assert knee.slope_ratio == pytest.approx(1.0)
    assert knee.sparsity == pytest.approx(0.01 / slope)
    assert knee.describe().startswith("no knee: within 0.01")


def test_a_fall_that_slows_down_has_no_knee():
    assert not essential_sparsity(GRID, np.exp(-5 * GRID)).has_knee


@pytest.mark.parametrize("scores", [np.ones(10), 1 + GRID, 1 + 0.001 * (-1.0) ** np.arange(10)])
def test_a_curve_that_does_not_fall_has_no_knee(scores):
    knee = essential_sparsity(GRID, scores)
    assert not knee.has_knee
    assert knee.beyond_grid
    assert knee.sparsity == 0.9
    assert "no knee up to sparsity 0.90" in knee.describe()


def test_the_first_crossing_counts_even_if_the_score_recovers():
    knee = essential_sparsity([0, 0.2, 0.4, 0.6, 0.8], [1.0, 0.9, 1.0, 1.0, 0.0], 0.05)
    assert knee.sparsity == pytest.approx(0.1)


@given(st.integers(2, 7), st.floats(0.0, 0.1), st.floats(0.5, 3.0))
def test_lower_is_better_mirrors_higher_is_better(index, before, after):
    scores = planted(GRID[index], before, after, dense=5.0)
    up = essential_sparsity(GRID, scores)
    down = essential_sparsity(GRID, -scores, higher_is_better=False)
    assert up == down


@given(st.lists(st.floats(0.1, 10), min_size=4, max_size=10), st.floats(0, 0.5), st.floats(0, 0.5))
def test_the_sparsity_grows_with_the_tolerance_and_ignores_the_unit(scores, tolerance, more):
    grid = GRID[: len(scores)]
    knee = essential_sparsity(grid, scores, tolerance)
    assert essential_sparsity(grid, scores, tolerance + more).sparsity >= knee.sparsity
    scaled = essential_sparsity(grid, np.array(scores) * 4.0, tolerance)
    assert (scaled.sparsity, scaled.bend) == (knee.sparsity, knee.bend)
    assert 0 <= knee.sparsity <= grid[-1]


def test_absolute_and_relative_tolerance():
    scores = planted(0.4, 0.0, 10.0, dense=50.0)
    assert essential_sparsity(GRID, scores, 0.01).sparsity == pytest.approx(0.45)
    assert essential_sparsity(GRID, scores, 0.01, relative=False).sparsity == pytest.approx(0.401)


def test_the_sharpness_asked_for_decides():
    scores = planted(0.5, 0.4, 1.0)
    assert not essential_sparsity(GRID, scores).has_knee
    assert essential_sparsity(GRID, scores, sharp=2.0).has_knee


@pytest.mark.parametrize(
    ("ratios", "scores", "says"),
    [
        ([0.1, 0.2, 0.3, 0.4], [1, 1, 1, 0], "start with 0"),
        ([0, 0.5, 0.9, 1.0], [1, 1, 1, 0], "below 1"),
        ([0, 0.3, 0.2, 0.4], [1, 1, 1, 0], "not sorted"),
        ([0, 0.2, 0.2, 0.4], [1, 1, 1, 0], "0.2 stands twice"),
        ([0, 0.2, 0.4], [1, 1, 0], "3 points"),
        ([0, 0.2, 0.4, 0.6], [1, 1, math.nan, 0], "at sparsity 0.4 is nan"),
        ([0, 0.2, math.nan, 0.6], [1, 1, 1, 0], "not sorted"),
        ([0, 0.2, 0.4, 0.6], [1, 1, 1], "one score for each"),
        ([0, 0.2, 0.4, 0.6], [0, 1, 1, 1], "relative=False"),
    ],
)
def test_bad_curves_are_refused(ratios, scores, says):
    with pytest.raises(InvalidValue, match=says):
        essential_sparsity(ratios, scores)


def test_bad_arguments_are_refused():
    with pytest.raises(InvalidValue, match="tolerance is -1"):
        essential_sparsity(GRID, 1 - GRID, -1)
    with pytest.raises(InvalidValue, match="no curves"):
        knee_over_seeds([])
    with pytest.raises(InvalidValue, match="per_example has shape"):
        bootstrap_knee(GRID, 1 - GRID)
    with pytest.raises(InvalidValue, match="level is 95"):
        bootstrap_knee(GRID, np.ones((10, 3)), level=95)


def test_over_seeds():
    spread = knee_over_seeds(
        [(GRID, planted(at, 0.0, 1.0)) for at in (0.3, 0.4, 0.5)], tolerance=0.05
    )
    assert spread.mean == pytest.approx(0.45)
    assert spread.sd == pytest.approx(0.1)
    assert [knee.bend for knee in spread.knees] == [0.3, 0.4, 0.5]
    assert math.isnan(knee_over_seeds([(GRID, planted(0.4, 0.0, 1.0))]).sd)


def test_bootstrap_over_examples_covers_the_knee_and_narrows():
    rng = np.random.default_rng(0)

    def answers(examples):
        # The same difficulty in every row: an example once lost stays lost.
        difficulty = rng.uniform(size=examples)
        return (difficulty < planted(0.4, 0.0, 1.5)[:, None]).astype(float)

    few, many = (bootstrap_knee(GRID, answers(n), tolerance=0.1, resamples=300) for n in (50, 2000))
    truth = 0.4 + 0.1 / 1.5
    assert many.low <= truth <= many.high
    assert many.half_width < few.half_width / 3
    assert (many.n, many.level) == (2000, 0.95)


def test_bootstrap_of_a_loss_agrees_with_the_curve():
    losses = np.outer(2 - planted(0.4, 0.0, 1.0), np.ones(20))
    interval = bootstrap_knee(GRID, losses, perplexity, higher_is_better=False, resamples=50)
    knee = essential_sparsity(GRID, np.exp(losses[:, 0]), higher_is_better=False)
    assert interval.estimate == pytest.approx(knee.sparsity)
    assert interval.half_width == pytest.approx(0, abs=1e-9)  # all examples are equal
