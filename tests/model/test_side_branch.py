"""A linear layer with a side branch."""

import pytest
import torch
from torch import nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.side_branch import projection
from sparsecraft.model.side_branch import SideBranchLinear


@pytest.mark.parametrize("bias", [True, False])
def test_it_computes_with_the_sum_of_both(bias):
    linear, side = nn.Linear(12, 5, bias=bias), torch.randn(5, 4)
    plain = SideBranchLinear(linear, side)
    trained = SideBranchLinear(linear, side, projection(12, 3))
    x = torch.randn(2, 3, 12)
    expected = nn.functional.linear(x, linear.weight + side @ projection(12, 3), linear.bias)
    torch.testing.assert_close(plain(x), expected)
    torch.testing.assert_close(trained(x), expected)
    assert (plain.extra, trained.extra) == (20, 20 + 48)


def test_weight_and_bias_keep_their_names():
    names = set(SideBranchLinear(nn.Linear(4, 2), torch.zeros(2, 2)).state_dict())
    assert names == {"weight", "bias", "side"}


def test_sums_that_do_not_divide_the_inputs():
    with pytest.raises(InvalidValue, match="there are 4"):
        SideBranchLinear(nn.Linear(4, 2), torch.zeros(2, 5))
