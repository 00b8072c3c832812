import pytest
import torch

from sparsecraft.model.digests import digest, digest_of_batches

ONES = torch.ones(2, 3)


@pytest.mark.parametrize(
    "other",
    [
        [("b", ONES)],
        [("a", 2 * ONES)],
        [("a", ONES.double())],
        [("a", ONES.T)],
        [("a", ONES), ("b", 1)],
        [("a", "ones")],
    ],
)
def test_names_types_shapes_and_values_tell_things_apart(other):
    assert digest([("a", ONES)]) == digest([("a", torch.ones(3, 2).T)])
    assert digest([("a", ONES)]) != digest(other)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.bfloat16, torch.float16])
def test_every_type_is_read_bit_by_bit(dtype):
    assert digest([("a", ONES.to(dtype))]) != digest([("a", torch.zeros(2, 3, dtype=dtype))])
    assert digest([("a", torch.zeros(0, dtype=dtype))]) != digest([("a", ONES.to(dtype))])


def test_large_ids_that_a_float_cannot_tell_apart():
    one, two = ({"input_ids": torch.tensor([[2**24 + add]])} for add in (0, 1))
    assert digest_of_batches([one]) != digest_of_batches([two])


def test_batches_are_alike_whatever_the_order_of_their_names():
    batch = {"input_ids": ONES, "attention_mask": 2 * ONES}
    assert digest_of_batches([batch]) == digest_of_batches([dict(reversed(batch.items()))])
    assert digest_of_batches([batch]) != digest_of_batches([batch, batch])
