"""The curve of a claim: which arms are drawn, where, and that it is well-formed."""

import xml.etree.ElementTree as ElementTree

import pytest

from sparsecraft.lab.claims.curve import COLOURS, HEIGHT, draw
from sparsecraft.lab.evidence.table import Row

SVG = "{http://www.w3.org/2000/svg}"


def rows(series=("ours",), seeds=(0, 1)):
    return [
        Row(f"{name}, sparsity={x}", seed, "accuracy", 0.9 - 0.4 * x + 0.02 * seed + 0.05 * i)
        for i, name in enumerate(series)
        for x in (0.8, 0.0, 0.5)
        for seed in seeds
    ]


def parsed(found):
    return ElementTree.fromstring(draw(found, "accuracy"))


def lines_of(root):
    return [
        [tuple(map(float, corner.split(","))) for corner in line.get("points").split()]
        for line in root.iter(f"{SVG}polyline")
    ]


def test_a_series_runs_from_left_to_right_through_its_means():
    ((first, middle, last),) = lines_of(parsed(rows()))
    assert first[0] < middle[0] < last[0]
    assert first[1] < middle[1] < last[1]
    # Means fall in a straight line, which the drawing must keep.
    share = (middle[0] - first[0]) / (last[0] - first[0])
    assert share == pytest.approx(0.5 / 0.8, abs=0.001)
    assert middle[1] == pytest.approx(first[1] + share * (last[1] - first[1]), abs=0.05)


def test_every_series_has_its_line_its_key_and_its_own_stroke():
    names = [f"arm {index}" for index in range(len(COLOURS) + 3)]
    root = parsed(rows(names))
    words = [text.text for text in root.iter(f"{SVG}text")]
    assert [name for name in names if name in words] == names
    strokes = {
        (line.get("stroke"), line.get("stroke-dasharray")) for line in root.iter(f"{SVG}polyline")
    }
    assert len(strokes) == len(names)


def test_the_key_of_many_series_fits():
    root = parsed(rows([f"arm {index}" for index in range(30)], seeds=(0,)))
    height = float(root.get("viewBox").split()[-1])
    assert height > HEIGHT
    assert max(float(text.get("y")) for text in root.iter(f"{SVG}text")) < height


def test_an_arm_without_an_axis_is_a_level():
    found = [*rows(), Row("dense", 0, "accuracy", 0.7), Row("dense", 1, "accuracy", 0.7)]
    root = parsed(found)
    assert len(lines_of(root)) == 1
    wide = [
        line
        for line in root.iter(f"{SVG}line")
        if line.get("y1") == line.get("y2") and line.get("stroke") == COLOURS[1]
    ]
    assert any(float(line.get("x2")) - float(line.get("x1")) > 300 for line in wide)


def test_other_metrics_and_arms_without_any_axis_are_not_drawn():
    assert draw([Row("dense", 0, "accuracy", 0.7)], "accuracy") is None
    assert draw(rows(), "loss") is None


def test_names_are_escaped():
    assert "<b>" in "".join(parsed(rows(["<b>"])).itertext())
