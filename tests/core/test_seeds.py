import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.core.seeds import derive, generator


def test_a_stream_is_the_same_on_every_machine():
    assert derive(0, "layer", "a") == 7559104454482970074


@given(st.integers(-(2**40), 2**40), st.lists(st.text(max_size=5), max_size=3))
def test_range_and_repeatability(seed, labels):
    value = derive(seed, *labels)
    assert 0 <= value < 2**63
    assert value == derive(seed, *labels)


def test_streams_differ_by_seed_label_and_order():
    streams = [derive(0), derive(1), derive(0, "a"), derive(0, "a", "b"), derive(0, "b", "a")]
    assert len({*streams, derive(0, "ab")}) == 6


def test_generator_draws_its_own_stream():
    first = torch.rand(5, generator=generator(3, "x"))
    torch.rand(7)
    assert torch.equal(first, torch.rand(5, generator=generator(3, "x")))
    assert not torch.equal(first, torch.rand(5, generator=generator(3, "y")))
