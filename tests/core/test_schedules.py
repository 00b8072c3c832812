from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.schedules import (
    Constant,
    Cosine,
    Cubic,
    Exponential,
    Linear,
    OneShot,
    Step,
)

RAMPS = [Linear, Cubic, Exponential, Cosine, Step]


@pytest.mark.parametrize(
    ("schedule", "at_quarter", "at_half"),
    [
        (Linear, 0.775, 0.55),
        (Cubic, 0.1 + 0.9 * 27 / 64, 0.1 + 0.9 / 8),
        (Exponential, 0.1**0.25, 0.1**0.5),
        (Cosine, 0.1 + 0.9 * (1 + 2**-0.5) / 2, 0.55),
    ],
)
def test_hand_values(schedule, at_quarter, at_half):
    made = schedule(final=0.1, begin=100, end=200)
    assert made.density(125) == pytest.approx(at_quarter, rel=1e-12)
    assert made.density(150) == pytest.approx(at_half, rel=1e-12)


@pytest.mark.parametrize("schedule", RAMPS)
def test_ends(schedule):
    made = schedule(initial=0.8, final=0.2, begin=10, end=20)
    assert [made.density(step) for step in (0, 9, 20, 21, 10**6)] == [0.8, 0.8, 0.2, 0.2, 0.2]
    assert made.density(10) == pytest.approx(0.8)


@pytest.mark.parametrize("schedule", RAMPS)
@given(
    final=st.floats(0.01, 1),
    initial=st.floats(0.01, 1),
    begin=st.integers(0, 5),
    length=st.integers(0, 20),
    every=st.integers(1, 25),
)
def test_densities_go_one_way(schedule, final, initial, begin, length, every):
    made = schedule(final=final, initial=initial, begin=begin, end=begin + length, every=every)
    found = [made.density(step) for step in range(begin + length + 3)]
    low, high = sorted((initial, final))
    assert all(low - 1e-12 <= d <= high + 1e-12 for d in found)
    falling = sorted(found, reverse=initial >= final)
    assert found == pytest.approx(falling, abs=1e-12)
    assert found[-1] == final and made.due(begin + length)


def test_due_steps():
    made = Cubic(final=0.1, begin=10, end=25, every=6)
    assert [step for step in range(40) if made.due(step)] == [10, 16, 22, 25]


def test_one_shot():
    made = OneShot(final=0.3, begin=4)
    assert [made.density(step) for step in (3, 4, 5)] == [1.0, 0.3, 0.3]
    assert [step for step in range(10) if made.due(step)] == [4]


def test_constant():
    made = Constant(final=0.3, begin=2, end=9, every=3)
    assert {made.density(step) for step in range(12)} == {0.3}
    assert [step for step in range(12) if made.due(step)] == [2, 5, 8, 9]


def test_stairs_drop_only_where_due():
    made = Step(initial=1.0, final=0.4, begin=10, end=40, every=10)
    found = [made.density(step) for step in range(50)]
    assert [found[i] for i in (0, 10, 19, 20, 29, 30, 39, 40)] == pytest.approx(
        [1.0, 1.0, 1.0, 0.8, 0.8, 0.6, 0.6, 0.4]
    )
    changes = [i for i in range(1, 50) if found[i] != found[i - 1]]
    assert changes == [20, 30, 40] and all(made.due(step) for step in changes)


@pytest.mark.parametrize(
    "options",
    [{"final": 0.0}, {"final": 0.5, "initial": 1.2}, {"begin": 5, "end": 4}, {"every": 0}],
)
def test_wrong_values(options):
    with pytest.raises(InvalidValue):
        Linear(**{"final": 0.5, "end": 10, **options})


def test_what_a_schedule_fixes_itself_cannot_be_given():
    with pytest.raises(TypeError, match="end"):
        OneShot(final=0.5, end=10)
    with pytest.raises(TypeError, match="initial"):
        Constant(final=0.5, initial=0.9, end=10)
    assert replace(OneShot(final=0.5, begin=5), begin=7).end == 7
