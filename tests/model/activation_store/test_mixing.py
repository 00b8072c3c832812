"""The places of a buffer whose rows are replaced where they have been read."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.model.activation_store.mixing import MixingBuffer


@given(
    st.integers(4, 60),
    st.integers(0, 5),
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 30)), max_size=30),
)
def test_each_row_is_read_once_from_a_slot_that_is_its_own(slots, seed, moves):
    buffer = MixingBuffer(slots, seed)
    values = torch.full((slots,), -1)
    added, read = [], []
    for number, (rows, count) in enumerate(moves):
        rows = min(rows, buffer.room)
        new = 100 * number + torch.arange(rows)
        values[buffer.add(number, rows)] = new
        added += new.tolist()
        buffer.shuffle()
        taken = buffer.take(min(count, len(buffer)))
        read += values[taken].tolist()
        numbers, inside = buffer.origins(taken)
        assert torch.equal(100 * numbers + inside, values[taken])
        assert len(buffer) + buffer.room == slots
    rest = values[buffer.held()].tolist()
    assert sorted(read + rest) == added


def test_the_order_is_that_of_the_seed_and_covers_all():
    def order(*labels):
        buffer = MixingBuffer(1000, *labels)
        buffer.add(0, 1000)
        buffer.shuffle()
        return buffer.take(1000)

    assert torch.equal(order(1, 0), order(1, 0))
    assert not torch.equal(order(1, 0), order(1, 1)) and not torch.equal(order(1), order(2))
    place = order(0).argsort().float()
    assert abs(float(torch.corrcoef(torch.stack([place, torch.arange(1000.0)]))[0, 1])) < 0.1
