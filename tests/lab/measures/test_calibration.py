"""Calibration by hand on three bins, and against a loop."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.seeds import generator
from sparsecraft.lab.measures import (
    brier_score,
    expected_calibration_error,
    maximum_calibration_error,
    negative_log_likelihood,
)


def sure(*confidences):
    """Returns logits of two classes, the first being predicted with these probabilities."""
    p = torch.tensor(confidences, dtype=torch.float64)
    return torch.stack([p, 1 - p], 1).log()


def test_bins_by_hand():
    # Of five bins, (0.6, 0.8] has 0.7, 0.7, 0.75 with two right, (0.8, 1] has 0.9 which is wrong.
    logits, labels = sure(0.7, 0.7, 0.75, 0.9), torch.tensor([0, 0, 1, 1])
    first, second = abs(2 / 3 - 2.15 / 3), 0.9
    assert expected_calibration_error(logits, labels, bins=5) == pytest.approx(
        0.75 * first + 0.25 * second
    )
    assert maximum_calibration_error(logits, labels, bins=5) == pytest.approx(second)


def test_a_confidence_of_one_is_in_the_last_bin():
    logits = torch.tensor([[100.0, 0.0]])
    assert expected_calibration_error(logits, torch.tensor([0])) == 0.0
    assert maximum_calibration_error(logits, torch.tensor([1])) == 1.0


@given(st.integers(1, 40), st.integers(2, 6), st.integers(1, 20), st.integers(0, 500))
def test_the_loop_over_bins_gives_the_same(number, classes, bins, seed):
    draw = generator(seed, "logits")
    logits = 3 * torch.randn(number, classes, generator=draw, dtype=torch.float64)
    labels = torch.randint(classes, (number,), generator=draw)
    confidence, predicted = logits.softmax(1).max(1)
    total, largest = 0.0, 0.0
    bounds = torch.linspace(0, 1, bins + 1).tolist()
    for low, high in pairwise(bounds):
        inside = [i for i in range(number) if low < float(confidence[i]) <= high]
        if inside:
            right = sum(int(predicted[i] == labels[i]) for i in inside) / len(inside)
            gap = abs(right - sum(float(confidence[i]) for i in inside) / len(inside))
            total += len(inside) / number * gap
            largest = max(largest, gap)
    assert expected_calibration_error(logits, labels, bins) == pytest.approx(total, abs=1e-9)
    assert maximum_calibration_error(logits, labels, bins) == pytest.approx(largest, abs=1e-9)


def test_likelihood_and_brier_by_hand():
    logits, labels = sure(0.7, 0.9), torch.tensor([0, 1])
    assert negative_log_likelihood(logits, labels) == pytest.approx(
        -(math.log(0.7) + math.log(0.1)) / 2
    )
    assert brier_score(logits, labels) == pytest.approx((2 * 0.3**2 + 2 * 0.9**2) / 2)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(2), torch.zeros(2, dtype=torch.int64), "shape \\(2,\\)"),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64), "labels \\(3,\\)"),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), "at least one example"),
        (torch.zeros(1, 3), torch.tensor([3]), "from 0 to 2"),
        (torch.zeros(1, 3), torch.tensor([-1]), "from 0 to 2"),
        (torch.zeros(1, 3), torch.tensor([1.0]), "class indices"),
    ],
)
def test_shapes_and_labels_are_checked(logits, labels, message):
    with pytest.raises(InvalidValue, match=message):
        expected_calibration_error(logits, labels)


def test_bins_are_checked():
    with pytest.raises(InvalidValue, match="bins=0"):
        expected_calibration_error(torch.zeros(1, 2), torch.tensor([0]), bins=0)
