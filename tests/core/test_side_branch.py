"""The branch of sums beside a sparse matrix."""

import pytest
import torch

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.seeds import generator
from sparsecraft.core.side_branch import check_width, initial_side, projection

WEIGHT = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
KEEP = torch.tensor([[False, True, False, False]])


def test_the_pruned_weights_of_a_sum():
    draw = generator(0, "s")
    assert initial_side(WEIGHT, KEEP, 2, "mean", draw).tolist() == [[0.5, 3.5]]
    assert initial_side(WEIGHT, KEEP, 2, "sum", draw).tolist() == [[1.0, 7.0]]
    drawn = initial_side(WEIGHT, KEEP, 2, "xavier", generator(0, "s"))
    assert drawn.shape == (1, 2)
    assert drawn.abs().max() <= (6 / 3) ** 0.5
    assert torch.equal(drawn, initial_side(WEIGHT, KEEP, 2, "xavier", generator(0, "s")))


def test_every_input_is_in_one_sum():
    found = projection(12, 3)
    assert found.shape == (4, 12)
    assert torch.equal(found.sum(0), torch.ones(12))
    assert torch.equal(found.sum(1), torch.full((4,), 3.0))


@pytest.mark.parametrize("width", [0, 5])
def test_a_width_that_does_not_divide(width):
    with pytest.raises(InvalidValue, match=r"blocks\.0\.fc1: .* there are 12"):
        check_width(12, width, "blocks.0.fc1")
