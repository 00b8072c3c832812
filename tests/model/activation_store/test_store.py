"""Stores of tensors: rows, samples, parts, scale, and what is refused."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sparsecraft
from sparsecraft.core.errors import InvalidValue, NonFinite
from sparsecraft.model.activation_store import ActivationStore
from sparsecraft.model.activation_store.contents import Contents
from sparsecraft.model.activation_store.table import Shard, Table


def numbered(rows, width=3):
    return torch.arange(rows).float()[:, None].expand(rows, width).contiguous()


def of_shards(counts_by_shard):
    """Returns a store of contexts with these numbers of rows, row i holding i."""
    shards, first = [], 0
    for counts in counts_by_shard:
        rows = sum(counts)
        shards.append(
            Shard(
                numbered(first + rows)[first:].bfloat16(),
                torch.tensor(counts, dtype=torch.int32),
                torch.cat([torch.arange(n, dtype=torch.int32) for n in counts]),
                tokens=torch.arange(len(counts) * 5, dtype=torch.int32).reshape(-1, 5)
                + 100 * first,
            )
        )
        first += rows
    return ActivationStore._of(Contents(Table(shards), "digest", "a.hook"))


def test_it_is_public():
    assert sparsecraft.ActivationStore is ActivationStore


def test_rows_come_in_the_order_asked_for_as_float32():
    store = of_shards([[3, 0, 2], [4], [1, 5]])
    index = torch.tensor([14, 0, 5, 5, 9, 2])
    found = store.rows(index)
    assert found.x.dtype == torch.float32
    assert found.x[:, 1].tolist() == index.tolist() and torch.equal(found.index, index)


def test_places_are_contexts_and_positions():
    store = of_shards([[3, 0, 2], [4]])
    contexts, positions = store.place(torch.arange(9))
    assert contexts.tolist() == [0, 0, 0, 2, 2, 3, 3, 3, 3]
    assert positions.tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 3]
    assert store.tokens.shape == (4, 5) and store.tokens[3, 0] == 500


@given(seed=st.integers(0, 50), held_out=st.floats(0.1, 0.9))
def test_parts_are_whole_contexts_and_together_the_store(seed, held_out):
    store = of_shards([[3, 1, 2], [4, 2], [1, 5]])
    parts = store.split(held_out, seed)
    rows = [part.rows(torch.arange(len(part))).x[:, 0].tolist() for part in parts]
    assert sorted(rows[0] + rows[1]) == list(range(18))
    owners = [set(store.place(torch.tensor(part).long())[0].tolist()) for part in rows]
    assert not owners[0] & owners[1]
    assert parts[1].contexts == min(max(1, round(7 * held_out)), 6)


def test_a_part_has_its_own_numbers_places_and_tokens():
    store = of_shards([[3, 1, 2], [4, 2]])
    part, _ = store.split(0.4, seed=2)
    contexts, positions = part.place(torch.arange(len(part)))
    assert contexts.unique().tolist() == list(range(part.contexts)) and len(part.tokens) == 3
    again, _ = part.split(0.5, seed=0)  # parts can be divided further
    assert set(again.rows(torch.arange(len(again))).x[:, 0].tolist()) < set(
        part.rows(torch.arange(len(part))).x[:, 0].tolist()
    )
    assert part.digest != store.digest and positions.max() <= 3


def test_a_sample_has_different_rows_fixed_by_the_seed():
    store = ActivationStore.from_tensor(numbered(50))
    first, again, other = store.sample(20, 0), store.sample(20, 0), store.sample(20, 1)
    assert len(set(first.index.tolist())) == 20 and torch.equal(first.x, again.x)
    assert first.index.tolist() != other.index.tolist()
    assert torch.equal(first.x[:, 0], first.index.float())


def test_the_scale_makes_the_mean_norm_the_root_of_the_width():
    x = torch.randn(500, 9, generator=torch.Generator().manual_seed(0)) * 7
    store = ActivationStore.from_tensor(x)
    assert (x * store.scale()).norm(dim=1).mean().item() == pytest.approx(math.sqrt(9), rel=1e-5)
    with pytest.raises(InvalidValue, match="zero"):
        ActivationStore.from_tensor(torch.zeros(3, 2)).scale()


def test_tensors_bring_gradients_and_targets():
    x, gradient, target = torch.randn(6, 3), torch.randn(6, 5), torch.randn(6, 5)
    store = ActivationStore.from_tensor(x, gradient, target)
    assert (store.d_in, store.d_out, len(store), store.has_gradient) == (3, 5, 6, True)
    assert store.has_target and not ActivationStore.from_tensor(x).has_target
    found = store.rows(torch.tensor([4, 1]))
    assert torch.equal(found.gradient, gradient[[4, 1]])
    assert torch.equal(found.target, target[[4, 1]])
    assert (store.at, store.tokens, store.place(torch.tensor([0])), store.info) == (None,) * 3 + (
        {},
    )


def test_batches_go_over_all_rows_once():
    store = ActivationStore.from_tensor(numbered(23))
    parts = [batch.x[:, 0] for batch in store.batches(10)]
    assert [len(part) for part in parts] == [10, 10, 3]
    assert torch.cat(parts).tolist() == list(range(23))


def test_leading_dimensions_become_rows():
    assert len(ActivationStore.from_tensor(torch.randn(2, 5, 4))) == 10


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ((torch.ones(3, 2, dtype=torch.int64),), "must be floating"),
        ((torch.ones(3),), "must be floating and"),
        ((torch.ones(0, 2),), "at least one row"),
        ((torch.ones(3, 2), torch.ones(3, 3)), r"gradient has the shape \(3, 3\).*as wide as x"),
        (
            (torch.ones(3, 2), torch.ones(3, 2), torch.ones(3, 4)),
            r"gradient has the shape \(3, 2\), target \(3, 4\).*as wide as target",
        ),
        ((torch.ones(3, 2), None, torch.ones(2, 3)), "a row for each row of x"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tensors, message):
    with pytest.raises(InvalidValue, match=message):
        ActivationStore.from_tensor(*tensors)


def test_values_that_are_not_finite_are_counted():
    x = torch.ones(8, 2)
    x[3, 0], x[3, 1], x[5, 1] = np.nan, np.inf, -np.inf
    with pytest.raises(NonFinite, match="2 of 8 rows of x"):
        ActivationStore.from_tensor(x)


@pytest.mark.parametrize(
    "index", [torch.tensor([0.0]), torch.tensor([8]), torch.tensor([-1]), torch.ones(8).bool()]
)
def test_index_must_be_row_numbers(index):
    with pytest.raises(InvalidValue, match="index"):
        ActivationStore.from_tensor(torch.ones(8, 2)).rows(index)


def test_shares_and_counts_are_checked():
    store = ActivationStore.from_tensor(torch.ones(8, 2))
    with pytest.raises(InvalidValue, match="held_out=1"):
        store.split(1.0)
    with pytest.raises(InvalidValue, match="the store has 8 rows"):
        store.sample(9)
