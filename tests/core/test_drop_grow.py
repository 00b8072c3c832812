"""Dropping the smallest and growing the best: counts, ties, anneals."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.core.drop_grow import drop_fraction, dropped, grown, random_scores
from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.mask import random_mask
from sparsecraft.core.seeds import generator


def test_by_hand():
    weight = torch.tensor([[0.5, -0.1, 0.0], [0.0, 3.0, -0.2]])
    mask = torch.tensor([[True, True, False], [False, True, True]])
    keep = dropped(weight, mask, 0.5)
    assert keep.tolist() == [[True, False, False], [False, True, False]]
    scores = torch.tensor([[9.0, 1.0, 2.0], [7.0, 9.0, 3.0]])
    assert grown(keep, scores, 4).tolist() == [[True, False, False], [True, True, True]]


def test_what_was_dropped_may_be_grown_again():
    weight, mask = torch.tensor([2.0, 1.0, 0.0]), torch.tensor([True, True, False])
    keep = dropped(weight, mask, 0.5)
    assert keep.tolist() == [True, False, False]
    assert torch.equal(grown(keep, torch.tensor([0.0, 5.0, 4.0]), 2), mask)


@pytest.mark.parametrize("fraction, left", [(0.3, 5), (0.49, 4), (0.5, 4), (0.13, 7)])
def test_the_dropped_are_rounded_down(fraction, left):
    weight = torch.arange(1.0, 11.0)
    mask = torch.arange(10) < 7
    assert int(dropped(weight, mask, fraction).sum()) == left


def test_active_zeros_come_before_inactive_ones():
    keep = dropped(torch.zeros(4), torch.tensor([False, False, True, True]), 0.5)
    assert keep.tolist() == [False, False, True, False]


def test_growing_cannot_take_away():
    with pytest.raises(InvalidValue, match="3 weights are kept"):
        grown(torch.ones(3, dtype=torch.bool), torch.ones(3), 2)


@given(
    st.integers(1, 60),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 10**6),
)
def test_the_count_never_changes(numel, density, fraction, seed):
    draw = generator(seed, "case")
    active = round(density * numel)
    mask = random_mask((numel,), active, lambda: draw)
    weight = torch.randint(-3, 4, (numel,), generator=draw).float() * mask
    keep = dropped(weight, mask, fraction)
    assert bool((keep <= mask).all())
    assert int(keep.sum()) == active - int(fraction * active)
    # Kept ones are at least as large as dropped ones.
    gone = mask & ~keep
    if keep.any() and gone.any():
        assert weight[keep].abs().min() >= weight[gone].abs().max()
    scores = torch.randint(0, 3, (numel,), generator=draw).float()
    mask_after = grown(keep, scores, active)
    assert int(mask_after.sum()) == active
    assert bool((keep <= mask_after).all())
    new, out = mask_after & ~keep, ~mask_after
    if new.any() and out.any():
        assert scores[new].min() >= scores[out].max()


def test_anneals():
    assert drop_fraction(0.25, 0.3) == pytest.approx(0.15 * (1 + math.cos(math.pi / 4)))
    assert [drop_fraction(p, 0.3, "constant") for p in (0, 0.5, 1)] == [0.3] * 3
    assert drop_fraction(0.5, 0.3, "exponential", 2.0) == pytest.approx(0.3 * math.exp(-1))
    with pytest.raises(UnknownName, match="Did you mean 'cosine'"):
        drop_fraction(0.5, 0.3, "cosin")


def test_random_scores_are_fixed_by_the_stream():
    one, two = (random_scores((3, 4), generator(0, "grow")) for _ in range(2))
    assert torch.equal(one, two)
    assert len(one.unique()) == 12
