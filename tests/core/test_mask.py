import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.mask import Mask, count, masked, pack_bits, random_mask, unpack_bits
from sparsecraft.core.seeds import generator

shapes = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple)


def drawn(shape, density=0.4, seed=0):
    return torch.rand(shape, generator=generator(seed, "mask", shape)) < density


@pytest.mark.parametrize(
    ("numel", "density", "kept"),
    [
        (10, 0.25, 3),
        (7, 0.5, 4),
        (10, 1 - 0.9, 1),
        (15, 1 - 0.9, 2),
        (5, 1.0, 5),
        (5, 1e-9, 0),
        (0, 0.5, 0),
    ],
)
def test_count_rounds_half_up(numel, density, kept):
    assert count(numel, density) == kept


@given(st.integers(1, 10**7), st.integers(0, 10**7))
def test_count_returns_what_a_fraction_came_from(numel, kept):
    kept = min(kept, numel)
    assert count(numel, kept / numel) == kept


@given(st.integers(0, 10**6), st.integers(0, 1000))
def test_count_is_exact_half_up_of_a_decimal(numel, thousandths):
    exact = math.floor(Fraction(numel * thousandths, 1000) + Fraction(1, 2))
    assert count(numel, thousandths / 1000) == exact
    assert count(numel, 1 - (1000 - thousandths) / 1000) == exact


def test_densities():
    mask = Mask({"a": torch.tensor([[True, False]]), "b": torch.tensor([True, True])})
    assert (mask.numel, mask.kept, mask.density) == (4, 3, 0.75)
    assert mask.densities == {"a": 0.5, "b": 1.0}
    assert Mask({}).density == 1.0


def test_only_bools():
    with pytest.raises(InvalidValue, match=r"'a' has dtype torch.float32"):
        Mask({"a": torch.ones(2)})


def test_apply_then_verify():
    mask = Mask({"a": torch.tensor([True, False, True])})
    weights = {"a": torch.tensor([1.0, -2.0, 3.0]), "other": torch.ones(2)}
    with pytest.raises(InvalidValue, match=r"1 pruned weights in 1 tensors .* a \(1\)"):
        mask.verify(weights)
    mask.apply_(weights)
    assert weights["a"].tolist() == [1.0, 0.0, 3.0] and weights["other"].tolist() == [1.0, 1.0]
    assert not torch.signbit(weights["a"]).any()
    mask.verify(weights)


def test_apply_clears_nan_and_works_on_parameters():
    parameter = torch.nn.Parameter(torch.tensor([float("nan"), 1.0]))
    Mask({"a": torch.tensor([False, True])}).apply_({"a": parameter})
    assert parameter.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("weights", [{}, {"a": torch.ones(2)}])
def test_a_mask_of_another_model_changes_nothing(weights):
    mask = Mask({"b": torch.zeros(2, dtype=torch.bool), "a": torch.zeros(3, dtype=torch.bool)})
    weights["b"] = torch.ones(2)
    with pytest.raises(InvalidValue):
        mask.apply_(weights)
    assert weights["b"].tolist() == [1.0, 1.0]


@given(st.dictionaries(st.text(max_size=4), shapes, max_size=3), st.integers(0, 9))
def test_pack_round_trip(named_shapes, seed):
    mask = Mask({name: drawn(shape, seed=seed) for name, shape in named_shapes.items()})
    bits, metadata = mask.packed()
    assert sum(b.numel() for b in bits.values()) == sum((t.numel() + 7) // 8 for t in mask.values())
    assert Mask.unpacked(bits, metadata) == mask


def test_bits_are_in_the_order_of_numpy():
    keep = torch.tensor([1, 0, 1, 0, 0, 0, 0, 1, 1], dtype=torch.bool)
    assert pack_bits(keep).tolist() == [0b10100001, 0b10000000]


def test_unpack_refuses_what_does_not_fit():
    bits, metadata = Mask({"a": drawn((3, 4))}).packed()
    with pytest.raises(InvalidValue, match="not a sparsecraft mask"):
        Mask.unpacked(bits, {})
    with pytest.raises(InvalidValue, match="differ"):
        Mask.unpacked({}, metadata)
    with pytest.raises(InvalidValue, match="do not hold"):
        unpack_bits(bits["a"], (5, 4))


def test_similarity():
    mask = Mask({"a": torch.tensor([True, True, False, False])})
    assert mask.similarity(mask) == 1.0
    assert mask.similarity(Mask({"a": torch.tensor([True, False, True, False])})) == 0.5
    assert mask.similarity(Mask({"a": ~mask["a"]})) == 0.0
    assert mask.similarity(Mask({"a": torch.zeros(4, dtype=torch.bool)})) == 0.0


def test_similarity_of_independent_masks():
    first, second = (
        Mask({"a": random_mask((200, 200), k, lambda k=k: generator(k))}) for k in (8000, 20000)
    )
    assert first.similarity(second) == pytest.approx(math.sqrt(0.2 * 0.5), abs=0.02)


@given(st.dictionaries(st.text(max_size=4), shapes, min_size=1, max_size=3), st.integers(0, 9))
def test_shuffled_keeps_the_counts(named_shapes, seed):
    mask = Mask({name: drawn(shape, seed=seed) for name, shape in named_shapes.items()})
    shuffled = mask.shuffled(seed)
    assert shuffled.densities == mask.densities
    assert shuffled == mask.shuffled(seed)


def test_shuffled_moves_the_entries():
    mask = Mask({"a": drawn((20, 20)), "b": drawn((20, 20), seed=1)})
    shuffled = mask.shuffled(0)
    assert shuffled != mask and shuffled != mask.shuffled(1)
    assert Mask({"b": mask["b"]}).shuffled(0)["b"].equal(shuffled["b"])


def test_equality_is_by_names_and_bits():
    mask = Mask({"a": drawn((3, 4))})
    assert mask == Mask({"a": mask["a"].clone()})
    assert mask != Mask({"a": ~mask["a"]}) and mask != Mask({"b": mask["a"]})
    assert mask != Mask({"a": drawn((4, 3))}) and mask != {"a": mask["a"]}


@given(shapes, st.integers(0, 9))
def test_random_mask_has_its_count(shape, seed):
    numel = math.prod(shape)
    kept = seed * numel // 9
    mask = random_mask(shape, kept, lambda: generator(seed))
    assert mask.shape == shape and int(mask.sum()) == kept


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_masked_entries_are_positive_zero_and_kept_ones_the_same_bits(dtype):
    tensor = torch.tensor([[-1.5, 2.0, -0.0], [float("inf"), float("nan"), -3.0]], dtype=dtype).T
    keep = torch.tensor([[False, True, True], [False, False, True]]).T
    found = masked(tensor, keep)
    assert found.dtype == dtype and found.shape == tensor.shape
    assert torch.equal(found[keep], tensor[keep])
    assert not found[~keep].any() and not torch.signbit(found[~keep]).any()
    assert torch.signbit(found[2, 0])  # a kept -0 stays one
