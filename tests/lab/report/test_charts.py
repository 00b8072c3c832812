from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.lab.report.labels import Box, Label, place
from sparsecraft.lab.report.markers import series_of
from sparsecraft.lab.report.scale import Scale, fitted, round_step
from sparsecraft.lab.report.svg import element, text
from sparsecraft.lab.report.values import interval, number, percent, plain_numbers, size

VALUES = st.floats(-1e9, 1e9, allow_subnormal=False)


@given(st.lists(VALUES, max_size=8), st.booleans())
def test_a_fitted_axis_holds_all_values_and_has_ticks_inside(values, from_zero):
    scale = fitted(values, from_zero=from_zero)
    assert scale.low < scale.high
    assert all(scale.low <= value <= scale.high for value in values)
    ticks = scale.ticks()
    assert ticks == sorted(ticks)
    assert all(0 <= scale.position(tick) <= 1 for tick in ticks)


@given(st.floats(1e-6, 1e6), st.floats(6.5, 1e8))
def test_a_wide_positive_range_is_logarithmic_with_at_least_two_ticks(low, factor):
    scale = fitted([low, low * factor])
    assert scale.log
    assert 2 <= len(scale.ticks()) <= 14
    middle = math.sqrt(scale.low * scale.high)
    assert scale.position(middle) == pytest.approx(0.5)


@given(st.floats(1e-6, 1e6))
def test_a_round_step_is_round_and_not_smaller(step):
    rounded = round_step(step)
    mantissa = rounded / 10 ** math.floor(math.log10(rounded) + 1e-9)
    assert rounded >= step * (1 - 1e-9)
    assert any(math.isclose(mantissa, allowed) for allowed in (1, 2, 2.5, 5, 10))


def test_linear_ticks_are_the_round_values_inside():
    assert Scale(low=0.0, high=1.0).ticks() == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


def test_labels_cover_neither_points_nor_one_another():
    frame = Box(0, 0, 400, 300)
    spots = [(200.0, 150.0), (203.0, 150.0), (200.0, 153.0)]
    markers = [Box(x - 5, y - 5, x + 5, y + 5) for x, y in spots]
    placed = place([Label("dense", *spot) for spot in spots], markers, frame)
    boxes = [Box(at.x, at.y - 10, at.x + 30, at.y + 2) for at in placed]
    for index, box in enumerate(boxes):
        assert box.outside(frame) == 0
        assert all(box.shared(other) == 0 for other in [*markers, *boxes[:index]])


def test_series_differ_in_colour_and_shape():
    methods = ["dense", "random", "compact", *(f"method {index}" for index in range(20))]
    looks = series_of([{"method": method} for method in methods])
    pairs = [(look.colour, look.shape) for look in looks.values()]
    assert len(set(pairs)) == len(pairs)


def test_int8_and_fixed_patterns_are_hollow_siblings():
    arms = [
        {"method": "dense"},
        {"method": "dense int8"},
        {"method": "wanda", "pattern": "unstructured"},
        {"method": "wanda", "pattern": "2:4"},
    ]
    dense, int8, free, fixed = series_of(arms).values()
    for full, hollow in ((dense, int8), (free, fixed)):
        assert (full.colour, full.shape) == (hollow.colour, hollow.shape)
        assert (full.hollow, hollow.hollow) == (False, True)
    assert fixed.name == "wanda, 2:4"


def test_svg_escapes_attributes_and_words():
    assert element("g", data_arm='a"<b>') == '<g data-arm="a&quot;&lt;b&gt;"></g>'
    assert text("<&>", 1.0, 2.5) == '<text x="1" y="2.5">&lt;&amp;&gt;</text>'


@pytest.mark.parametrize("value", [None, "3", True, math.nan, math.inf, {}, []])
def test_only_finite_numbers_count(value):
    assert number({"a": {"b": value}}, "a", "b") is None


def test_numbers_as_text():
    assert percent(-0.0004) == "0.0\u00a0%"
    assert percent(-0.02) == "−2.0\u00a0%"
    assert percent(None) == "–"
    assert interval(0.01, None, 0.02) == "1.0\u00a0%"
    assert size(999_600) == "1.0\u00a0MB"
    assert size(512) == "512\u00a0B"
    assert [plain_numbers([0.5, 0.525])(value) for value in (0.5, 0.525)] == ["0.500", "0.525"]
