"""Readers give each row once in an epoch, divide it between ranks, and go on where they stood."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.core.errors import InvalidValue
from sparsecraft.model.activation_store import ActivationStore


def a_store(rows=60, width=4):
    return ActivationStore.from_tensor(torch.arange(rows * width).float().reshape(rows, width))


@given(rows=st.integers(6, 80), batch=st.integers(1, 3), world=st.integers(1, 2))
def test_an_epoch_has_every_row_once_over_all_ranks(rows, batch, world):
    readers = [a_store(rows).reader(batch, 5, rank, world) for rank in range(world)]
    seen = []
    while len(seen) < 3 * rows:
        for reader in readers:
            seen += next(reader).index.tolist()
    counts = torch.bincount(torch.tensor(seen), minlength=rows)
    whole = len(seen) // rows
    assert set(counts.tolist()) <= {whole, whole + 1} and int(counts.sum()) == len(seen)
    assert len({reader.step for reader in readers}) == 1


def test_ranks_never_read_the_same_rows_of_an_epoch():
    store = a_store(64)
    seen = [
        {int(i) for _ in range(4) for i in next(reader).index}
        for reader in (store.reader(8, 1, rank, 2) for rank in (0, 1))
    ]
    assert not seen[0] & seen[1] and len(seen[0] | seen[1]) == 64


def test_a_batch_has_the_rows_that_its_index_says_in_ascending_order():
    store = a_store()
    batch = next(store.reader(16))
    assert torch.equal(batch.x[:, 0], 4.0 * batch.index) and len(batch) == 16
    assert bool((batch.index.diff() > 0).all())


def test_a_reader_goes_on_exactly_where_another_stood():
    store = a_store()
    reader = store.reader(7, seed=3)
    for _ in range(11):
        next(reader)
    state = reader.state_dict()
    following = [next(reader).index.tolist() for _ in range(10)]
    other = store.reader(7, seed=3)
    other.load_state_dict(state)
    assert (other.epoch, other.position) == (1, 77)
    assert [next(other).index.tolist() for _ in range(10)] == following


def test_seeds_give_other_orders():
    store = a_store()
    assert next(store.reader(9, 0)).index.tolist() != next(store.reader(9, 1)).index.tolist()


@pytest.mark.parametrize("change", [{"seed": 1}, {"batch": 6}, {"world": 2}])
def test_the_state_of_another_reader_is_refused(change):
    store = a_store()
    state = store.reader(**{"batch": 7, "seed": 0, **change}).state_dict()
    with pytest.raises(InvalidValue, match=f"{next(iter(change))}="):
        store.reader(7, 0).load_state_dict(state)


def test_the_state_of_a_reader_of_another_store_is_refused():
    one, other = a_store(), ActivationStore.from_tensor(torch.ones(60, 4))
    with pytest.raises(InvalidValue, match="store="):
        other.reader(7).load_state_dict(one.reader(7).state_dict())


def test_batches_larger_than_the_store_are_refused():
    with pytest.raises(InvalidValue, match="give at most 30"):
        a_store(60).reader(31, world=2)
    with pytest.raises(InvalidValue, match="below world"):
        a_store().reader(2, rank=1)
