"""Decays of mask values and of patterns, as functions of the time."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.gradient_flow import (
    mask_decay,
    pattern_at,
    patterns_towards,
    scaled_beta,
    stages,
    whole_steps,
)
from sparsecraft.core.patterns import NM


def texts(structure, keep, of):
    return [str(pattern) for pattern in patterns_towards(structure, NM(keep, of))]


def test_patterns_for_one_and_for_several_kept():
    assert texts("stepwise", 1, 16) == ["15:16", "8:16", "4:16", "2:16", "1:16"]
    assert texts("stepwise", 2, 8) == ["7:8", "4:8", "2:8"]
    assert texts("stepwise", 3, 12) == ["11:12", "6:12", "3:12"]
    assert texts("stepwise", 2, 4) == ["3:4", "2:4"]
    assert texts("stepwise", 4, 4) == ["4:4"]
    assert texts("geometric", 2, 8) == ["16:64", "8:32", "4:16", "2:8"]
    assert texts("densify", 2, 8) == ["2:64", "2:32", "2:16", "2:8"]


@pytest.mark.parametrize("keep, of", [(1, 6), (3, 8), (2, 7), (5, 8)])
def test_stepwise_needs_a_power_of_two(keep, of):
    with pytest.raises(InvalidValue, match=f"{of} / {keep} is not a power of two"):
        patterns_towards("stepwise", NM(keep, of))
    assert patterns_towards("geometric", NM(keep, of))[-1] == NM(keep, of)


def test_an_unknown_structure():
    with pytest.raises(UnknownName, match="Did you mean 'stepwise'"):
        patterns_towards("stepwize", NM(1, 4))


@given(
    st.sampled_from(["stepwise", "geometric", "densify"]),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(10, 500),
    st.floats(0, 0.45),
    st.floats(0, 0.45),
)
def test_frames_are_equal_and_end_with_the_target(structure, keep, halvings, total, dense, tune):
    target = NM(keep, keep * 2**halvings)
    table = stages(patterns_towards(structure, target), total, dense * total, tune * total)
    starts = [stage.start for stage in table]
    assert starts[0] == whole_steps(dense, total)
    assert starts == sorted(starts)
    lengths = [after - before for before, after in itertools.pairwise(starts)]
    assert max(lengths) - min(lengths) <= 1
    assert pattern_at(table, total - 1) == target
    assert pattern_at(table, starts[0] - 1) is None


def test_mask_decays():
    assert [mask_decay(kind, 0, 0.1) for kind in ("linear", "exponential", "step")] == [1, 1, 0]
    assert mask_decay("linear", 4, 0.1) == pytest.approx(0.6)
    assert mask_decay("linear", 10, 0.1) == mask_decay("linear", 50, 0.1) == 0
    assert mask_decay("exponential", 30, 0.1) == pytest.approx(math.exp(-3))
    with pytest.raises(UnknownName, match="decay 'expo'"):
        mask_decay("expo", 1, 0.1)


@pytest.mark.parametrize("span", [1, 90, 1000])
def test_the_scaled_beta_ends_near_zero(span):
    assert mask_decay("exponential", span, scaled_beta("exponential", span)) < 4e-4
    assert mask_decay("linear", math.ceil(0.75 * span), scaled_beta("linear", span)) == 0
    assert scaled_beta("linear", 100) == pytest.approx(1 / 75)
    assert scaled_beta("exponential", 100) == pytest.approx(0.08)
