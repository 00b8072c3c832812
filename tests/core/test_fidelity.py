"""The sums of a reconstruction: variance about the mean, divided once."""

import math

import pytest
import torch

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.fidelity import ReconstructionSums


def _sums(x, estimate, parts=1):
    sums = ReconstructionSums()
    for rows, guesses in zip(x.chunk(parts), estimate.chunk(parts), strict=True):
        sums.add(rows, guesses)
    return sums


def test_predicting_the_mean_explains_nothing_and_the_rows_themselves_everything():
    x = torch.randn(50, 6) + 10
    assert _sums(x, x.mean(0).expand_as(x)).explained_variance == pytest.approx(0, abs=1e-6)
    assert _sums(x, x).fvu == 0


def test_batches_change_nothing():
    x, estimate = torch.randn(60, 5), torch.randn(60, 5)
    whole, parts = _sums(x, estimate), _sums(x, estimate, parts=7)
    for name in ("fvu", "squared_error", "relative_error", "cosine", "shrinkage"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-12)


def test_by_hand():
    x, estimate = torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.5, 0.0]])
    sums = _sums(x, estimate)
    assert sums.fvu == pytest.approx(2.25 / 2)
    assert sums.squared_error == pytest.approx(2.25 / 2)
    assert sums.relative_error == pytest.approx(0.25 / 2)
    assert sums.cosine == pytest.approx(1)
    assert sums.shrinkage == pytest.approx((1 + 2.25) / (1 + 4.5))


def test_a_large_mean_does_not_hide_the_variance():
    x = (torch.randn(4000, 3, dtype=torch.float64) + 1e4).float()
    estimate = x.mean(0).expand_as(x)
    assert _sums(x, estimate, parts=10).fvu == pytest.approx(1, rel=1e-3)


def test_equal_rows_have_no_variance_to_explain():
    x = torch.full((5, 3), 0.1)
    assert math.isnan(_sums(x, x).fvu)


def test_other_shapes_are_refused():
    with pytest.raises(InvalidValue, match=r"\(2, 3\).*\(2, 4\)"):
        ReconstructionSums().add(torch.zeros(2, 3), torch.zeros(2, 4))
