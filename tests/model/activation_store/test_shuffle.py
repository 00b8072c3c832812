"""A computed order is a permutation, another one for each seed, and mixes far."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.model.activation_store.shuffle import Permutation


@given(count=st.integers(1, 700), seed=st.integers(0, 2**40))
def test_every_number_stands_once(count, seed):
    order = Permutation(count, seed).of(torch.arange(count))
    assert order.sort().values.tolist() == list(range(count))


@given(count=st.integers(1, 500), seed=st.integers(0, 99))
def test_a_place_has_its_number_whatever_is_asked_with_it(count, seed):
    order = Permutation(count, seed)
    together = order.of(torch.arange(count))
    assert [int(order.of(torch.tensor([i]))) for i in range(0, count, 97)] == together[
        ::97
    ].tolist()


def test_orders_of_two_epochs_are_unrelated():
    count = 20_000
    first, second = (Permutation(count, 0, "epoch", n).of(torch.arange(count)) for n in (0, 1))
    assert int((first == second).sum()) < 10
    both = torch.stack([first, second, torch.arange(count)]).double()
    assert float(torch.corrcoef(both).fill_diagonal_(0).abs().max()) < 0.03


def test_the_first_numbers_come_from_everywhere():
    chosen = Permutation(1_000_003, 3).of(torch.arange(10_000))
    tenths = torch.histc(chosen.float(), 10, 0, 1_000_003)
    assert float((tenths - 1000).abs().max()) < 150  # five deviations
