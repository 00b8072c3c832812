"""Distances and barriers by hand."""

import math

import pytest
import torch

from sparsecraft.core.errors import InvalidValue
from sparsecraft.lab.measures import angle, barrier, barycentre_distances, distance, pairwise


def state(*values, steps=0):
    return {"w": torch.tensor(values[:-1]), "b": torch.tensor(values[-1]), "n": torch.tensor(steps)}


def test_distances_by_hand():
    one, two = state(1.0, 2.0, 3.0), state(1.0, 5.0, 7.0, steps=9)
    assert distance(one, two) == 5.0
    assert pairwise([one, two, one]) == {(0, 1): 5.0, (0, 2): 0.0, (1, 2): 5.0}
    assert barycentre_distances([one, two]) == [2.5, 2.5]


def test_angles_by_hand():
    assert angle(state(1.0, 0.0, 0.0), state(0.0, 2.0, 0.0)) == pytest.approx(90)
    assert angle(state(1.0, 1.0, 0.0), state(3.0, 0.0, 0.0)) == pytest.approx(45)
    one = state(0.1, 0.7, 0.3)
    assert angle(one, one) == pytest.approx(0, abs=1e-5)


def test_the_order_of_the_keys_does_not_matter():
    one = state(1.0, 2.0, 3.0)
    assert distance(one, dict(reversed(one.items()))) == 0.0


def test_a_barrier_is_what_rises_above_the_line():
    one, two = state(0.0, 0.0, 0.0), state(1.0, 0.0, 0.0)

    def hill(found):
        x = float(found["w"][0])
        return 1 + x + math.sin(math.pi * x)

    assert barrier(one, two, hill) == pytest.approx(1.0)
    assert barrier(one, two, lambda found: -hill(found)) == pytest.approx(-math.sin(math.pi / 10))
    assert barrier(one, two, lambda found: 3 * float(found["w"][0])) == pytest.approx(0, abs=1e-6)


def test_integers_are_of_the_first_on_the_way():
    seen = []

    def loss(found):
        seen.append(int(found["n"]))
        return 0.0

    barrier(state(0.0, 0.0, steps=4), state(1.0, 0.0, steps=7), loss, points=3)
    assert seen == [4, 4, 4]


def test_errors():
    one = state(1.0, 2.0, 3.0)
    with pytest.raises(InvalidValue, match="different keys or shapes"):
        distance(one, {"w": one["w"]})
    with pytest.raises(InvalidValue, match="different keys or shapes"):
        distance(one, {**one, "w": torch.zeros(5)})
    with pytest.raises(InvalidValue, match="no direction"):
        angle(one, state(0.0, 0.0, 0.0))
    with pytest.raises(InvalidValue, match="points=2"):
        barrier(one, one, lambda found: 0.0, points=2)
    with pytest.raises(InvalidValue, match="no floating entry"):
        distance({"n": one["n"]}, {"n": one["n"]})
    with pytest.raises(InvalidValue, match="no state dict"):
        barycentre_distances([])
