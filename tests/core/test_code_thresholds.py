"""Thresholds for rows that come alone: exact over a set, running over batches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.core.code_thresholds import (
    check_momentum,
    column_thresholds,
    just_below,
    move_towards,
    smallest_kept,
    smallest_kept_by_column,
    whole_threshold,
)
from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.penalties import AbsTopK, TopK
from sparsecraft.core.seeds import generator

CUTS = (1, 30, 31, 77)


def scores(seed, rows=100, width=7):
    return torch.randn(rows, width, generator=generator(seed, "code thresholds"))


def batches(u):
    return [part for part in u.tensor_split(CUTS) if len(part)]


@given(seed=st.integers(0, 20), keep=st.integers(1, 300), absolute=st.booleans())
def test_exactly_as_many_exceed_the_threshold(seed, keep, absolute):
    u = scores(seed)
    ranks = u.abs() if absolute else u
    found = whole_threshold(batches(u), keep, absolute=absolute)
    assert int((ranks > found).sum()) == min(keep, int((ranks > 0).sum()))
    assert found.shape == (1,)


@given(seed=st.integers(0, 20), counts=st.lists(st.integers(1, 60), min_size=7, max_size=7))
def test_every_column_has_its_count(seed, counts):
    u, counts = scores(seed), torch.tensor(counts)
    found = column_thresholds(batches(u), counts)
    assert torch.equal((u > found).sum(0), counts.minimum((u > 0).sum(0)))


def test_ties_with_the_last_are_kept_all():
    u = torch.tensor([[2.0, 1.0], [1.0, 0.0]])
    assert int((u > whole_threshold([u], 2)).sum()) == 3
    ones = torch.ones(3, 2)
    assert bool((ones > column_thresholds([ones], torch.tensor([1, 2]))).all())


def test_nothing_positive_gives_zero():
    assert float(whole_threshold([-torch.ones(2, 2)], 1)) == 0
    assert column_thresholds([-torch.ones(2, 2)], torch.tensor([1, 1])).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("kind", [TopK, AbsTopK])
def test_the_threshold_of_a_batch_selects_it_again(kind):
    u = scores(3)
    code = kind(k=2, scope="batch").select(u)
    found = smallest_kept(u, code, absolute=kind.signed)
    assert float(found["batches"]) == 1
    mask = kind(k=2).threshold_mask(u, found["threshold"])
    assert torch.equal(mask, code.dense() != 0)


def test_columns_of_a_batch_are_selected_again():
    u = scores(4)
    code = TopK(k=60, scope="feature").select(u)
    found = smallest_kept_by_column(u, code, torch.full((7,), 60))
    assert torch.equal(u > found, code.dense() != 0)
    assert bool((found == 0).any()), "columns with fewer than 60 positive entries keep all of them"


def test_an_empty_code_is_no_batch():
    u = -torch.ones(2, 3)
    found = smallest_kept(u, TopK(k=1, scope="batch").select(u))
    assert float(found["batches"]) == 0 and float(found["threshold"]) == 0


def test_running_means():
    running = torch.tensor([torch.nan, 1.0])
    move_towards(running, torch.tensor([4.0, 3.0]), 0.75)
    assert running.tolist() == [4.0, 1.5]
    move_towards(running, torch.tensor([2.0, 2.0]), 0.75, first=True)
    assert running.tolist() == [2.0, 2.0]
    assert float(just_below(torch.tensor(0.0))) == 0.0
    assert float(just_below(torch.tensor(1.0))) < 1.0


@pytest.mark.parametrize("momentum", [1.0, -0.1, float("nan"), "0.9"])
def test_a_momentum_that_is_none_is_refused(momentum):
    with pytest.raises(InvalidValue, match=r"m=.*number in \[0, 1\)"):
        check_momentum("m", momentum)
