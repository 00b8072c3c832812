import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.kernels.blocks import block_sums, expand_blocks


def test_sums_by_hand():
    scores = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    assert block_sums(scores, 1, 2).tolist() == [[3.0, 7.0], [11.0, 15.0]]
    assert block_sums(scores, 2, 1).tolist() == [[6.0, 8.0, 10.0, 12.0]]
    assert block_sums(scores.t(), 4, 2).tolist() == [[36.0]]


def test_expansion_by_hand():
    mask = torch.tensor([[True, False], [False, True]])
    assert expand_blocks(mask, 1, 2).int().tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]
    assert expand_blocks(mask, 2, 1).int().tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]


@given(st.integers(0, 4), st.integers(0, 4), st.integers(1, 3), st.integers(1, 3))
def test_summing_an_expanded_mask_counts_the_block(rows, cols, height, width):
    mask = torch.arange(rows * cols).view(rows, cols) % 3 == 0
    full = expand_blocks(mask, height, width)
    assert full.shape == (rows * height, cols * width)
    assert torch.equal(block_sums(full.float(), height, width), mask * float(height * width))


def test_blocks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="3 x 1 do not tile a matrix of 4 x 4"):
        block_sums(torch.zeros(4, 4), 3, 1)
    with pytest.raises(ValueError, match="1 x 3 do not tile"):
        block_sums(torch.zeros(4, 4), 1, 3)
    with pytest.raises(ValueError, match="no entries"):
        block_sums(torch.zeros(4, 4), 0, 1)
    with pytest.raises(ValueError, match="no entries"):
        expand_blocks(torch.ones(2, 2), 1, 0)
    with pytest.raises(ValueError, match="matrix"):
        expand_blocks(torch.ones(2), 1, 1)
