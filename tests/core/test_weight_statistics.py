import pytest
import torch

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.weight_statistics import weight_statistics


def test_by_hand():
    found = weight_statistics(torch.tensor([[-3.0, 0.0], [0.0, 3.0]]), near=0.5, bins=3)
    assert found.largest == 3
    assert found.deviation == pytest.approx(4.5**0.5)
    assert found.near_zero == 0.5
    assert found.kurtosis == pytest.approx((2 * 81 / 4) / 4.5**2)
    assert found.histogram == (1, 2, 1)


def test_known_distributions():
    draws = torch.Generator().manual_seed(0)
    normal = weight_statistics(torch.randn(200_000, generator=draws))
    uniform = weight_statistics(torch.rand(200_000, generator=draws) - 0.5)
    assert normal.kurtosis == pytest.approx(3, abs=0.05)
    assert uniform.kurtosis == pytest.approx(1.8, abs=0.02)
    assert normal.near_zero == pytest.approx(0.00798, abs=0.001)
    assert sum(normal.histogram) == 200_000


def test_constant_and_empty():
    assert weight_statistics(torch.zeros(4)).kurtosis == 0
    with pytest.raises(InvalidValue, match="empty"):
        weight_statistics(torch.zeros(0))
