import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.mask import count
from sparsecraft.core.patterns import (
    NM,
    Block,
    Channels,
    Unstructured,
    as_matrix,
    from_matrix,
    parse_pattern,
)

densities = st.floats(0.01, 1.0)
# Few distinct values, so that ties are everywhere.
tied = st.integers(0, 2**31).map(
    lambda seed: torch.randint(0, 3, (8, 12), generator=torch.Generator().manual_seed(seed)).float()
)
FREE = [
    Unstructured(),
    Unstructured(per="row"),
    Block(2, 3),
    Block(8, 12),
    Channels("out"),
    Channels("in"),
]


def no_pruned_above_kept(scores, mask):
    return not mask.any() or mask.all() or scores[mask].min() >= scores[~mask].max()


@given(tied, densities)
def test_unstructured_counts_exactly_under_ties(scores, density):
    mask = Unstructured().mask(scores, density)
    assert mask.dtype == torch.bool and mask.shape == scores.shape
    assert int(mask.sum()) == count(96, density)
    assert no_pruned_above_kept(scores, mask)


@given(tied, densities)
def test_rows_count_exactly_under_ties(scores, density):
    mask = Unstructured(per="row").mask(scores, density)
    assert mask.sum(1).tolist() == [count(12, density)] * 8
    assert all(no_pruned_above_kept(s, m) for s, m in zip(scores, mask, strict=True))


@given(tied, densities)
def test_a_global_budget_counts_exactly_under_ties(scores, density):
    parts = [scores[:3], scores[3:]]
    masks = Unstructured().global_masks(parts, density)
    assert torch.equal(torch.cat(masks), Unstructured().mask(scores, density))


@pytest.mark.parametrize("of", [1, 2, 3, 4, 6, 12])
@given(scores=tied, data=st.data())
def test_every_group_keeps_n_of_m(of, scores, data):
    keep = data.draw(st.integers(1, of))
    groups = NM(keep, of).mask(scores).view(8, -1, of)
    assert (groups.sum(-1) == keep).all()
    for values, kept in zip(scores.view(-1, of), groups.view(-1, of), strict=True):
        assert no_pruned_above_kept(values, kept)


def test_one_of_four_keeps_one():
    mask = NM(keep=1, of=4).mask(torch.tensor([[1.0, 3.0, 2.0, 0.0]]))
    assert mask.tolist() == [[False, True, False, False]]


@given(tied, densities)
def test_blocks(scores, density):
    mask = Block(2, 3).mask(scores, density)
    tiles = mask.view(4, 2, 4, 3).transpose(1, 2).reshape(16, 6)
    sums = scores.view(4, 2, 4, 3).transpose(1, 2).reshape(16, 6).sum(1)
    kept = tiles.all(1)
    assert torch.equal(kept, tiles.any(1))
    assert int(kept.sum()) == count(16, density)
    assert no_pruned_above_kept(sums, kept)


def test_blocks_share_a_global_budget():
    masks = Block(1, 2).global_masks([torch.tensor([[1.0, 1.0]]), torch.tensor([[3.0, 0.0]])], 0.5)
    assert [m.tolist() for m in masks] == [[[False, False]], [[True, True]]]


@given(tied, densities)
def test_channels(scores, density):
    rows = Channels("out").mask(scores, density)
    assert torch.equal(rows.all(1), rows.any(1))
    assert int(rows.any(1).sum()) == max(1, count(8, density))
    assert torch.equal(Channels("in").mask(scores.T, density), rows.T)


@pytest.mark.parametrize("pattern", [*FREE, NM(1, 3), NM(2, 4)], ids=str)
@given(scores=tied, density=densities)
def test_projecting_twice_is_projecting_once(pattern, scores, density):
    density = pattern.fixed_density or density
    positive = scores + 1
    mask = pattern.mask(positive, density)
    assert torch.equal(pattern.mask(positive * mask, density), mask)


@pytest.mark.parametrize("pattern", FREE, ids=str)
def test_density_one_keeps_all(pattern):
    assert pattern.mask(torch.zeros(8, 12), 1.0).all()


def test_channels_have_no_global_form():
    with pytest.raises(InvalidValue, match="no model-wide form"):
        Channels().global_masks([torch.ones(2, 2)], 0.5)


def test_nm_global_masks_are_those_of_each_matrix():
    scores = [torch.rand(2, 4), torch.rand(3, 8)]
    masks = NM(2, 4).global_masks(scores, 0.5)
    assert all(torch.equal(m, NM(2, 4).mask(s)) for m, s in zip(masks, scores, strict=True))


@pytest.mark.parametrize(("keep", "of"), [(0, 4), (5, 4), (-1, 4), (0.5, 4)])
def test_nm_values(keep, of):
    with pytest.raises(InvalidValue, match="NM"):
        NM(keep, of)


def test_nm_refuses_another_density_and_another_width():
    with pytest.raises(InvalidValue, match=r"2:4 implies sparsity 0\.5, but 0\.4"):
        NM(2, 4).mask(torch.ones(2, 4), 0.6)
    with pytest.raises(InvalidValue, match="fc1: 2:4 needs a multiple of 4 inputs"):
        NM(2, 4).check((3, 6), "fc1")


def test_blocks_that_do_not_tile():
    with pytest.raises(InvalidValue, match="fc1: blocks of 2x3 do not tile"):
        Block(2, 3).check((3, 6), "fc1")
    with pytest.raises(InvalidValue, match="do not tile"):
        Block(2, 3).mask(torch.ones(3, 6), 0.5)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Unstructured(per="column"),
        lambda: Block(0, 4),
        lambda: Channels("inputs"),
        lambda: Unstructured().mask(torch.ones(2, 2), 0.0),
        lambda: Unstructured().mask(torch.ones(2, 2), 1.1),
    ],
)
def test_wrong_values(wrong):
    with pytest.raises(InvalidValue):
        wrong()


@pytest.mark.parametrize("pattern", [*FREE, NM(1, 4)], ids=str)
def test_the_text_of_a_pattern_parses_back(pattern):
    assert parse_pattern(str(pattern)) == pattern
    assert parse_pattern(pattern) is pattern


def test_unknown_text():
    with pytest.raises(UnknownName, match="Did you mean 'unstructured'"):
        parse_pattern("unstructred")


@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 2), (4, 3, 2, 5), (2, 3, 1, 1)])
def test_a_weight_is_its_matrix_and_back(shape):
    weight = torch.rand(shape)
    matrix = as_matrix(weight)
    assert matrix.shape == (shape[0], weight[0].numel())
    assert torch.equal(from_matrix(matrix, shape), weight)
    assert as_matrix(matrix) is matrix


def test_groups_of_a_convolution_run_along_its_input_channels():
    scores = torch.rand(3, 8, 2, 2)
    keep = NM(2, 4).tensor_mask(scores)
    assert (keep.view(3, 2, 4, 2, 2).sum(2) == 2).all()
    with pytest.raises(InvalidValue, match="multiple of 4 inputs"):
        NM(2, 4).tensor_mask(torch.rand(3, 6, 2, 2))
    with pytest.raises(InvalidValue, match="implies no density"):
        Unstructured().tensor_mask(scores)
