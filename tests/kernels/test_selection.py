"""Both back ends against hand-made cases and against sorting everything."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.kernels import order, selection_numba
from sparsecraft.kernels.backends import use_backend
from sparsecraft.kernels.selection import keep_largest, keep_largest_per_row, threshold_largest

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
NAN, INF = float("nan"), float("inf")

# Few values, so that ties at the threshold are the rule.
TIED = st.sampled_from([-INF, -2.0, -1.0, -0.0, 0.0, 1.0, 2.0, INF])
VALUES = TIED | st.floats(allow_nan=False, width=16)
SHAPES = [(7,), (3, 4), (0,), (2, 0, 3), (), (2, 3, 2)]


@pytest.fixture(autouse=True, params=["torch", "numba"])
def backend(request):
    with use_backend(request.param):
        yield request.param


def sorted_masks(tensors, keep, absolute):
    """The plain way: join, sort stably, take the first."""
    joined = torch.cat([t.reshape(-1).double() for t in tensors])
    joined = joined.abs() if absolute else joined + 0.0
    kept = torch.zeros(joined.numel(), dtype=torch.bool)
    kept[joined.sort(descending=True, stable=True).indices[:keep]] = True
    parts = kept.split([t.numel() for t in tensors])
    return [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)]


def check(tensors, keep, absolute):
    masks = keep_largest(tensors, keep, absolute=absolute)
    for mask, expected in zip(masks, sorted_masks(tensors, keep, absolute), strict=True):
        assert mask.dtype == torch.bool
        assert torch.equal(mask, expected)
    if keep:
        joined = torch.cat([t.reshape(-1) for t in tensors])
        joined = joined.abs() if absolute else joined
        value = threshold_largest(tensors, keep, absolute=absolute)
        assert value == joined.sort(descending=True).values[keep - 1]
        assert value.dtype == joined.dtype


@st.composite
def cases(draw, values=VALUES):
    dtype = draw(st.sampled_from(DTYPES))
    shapes = draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=4))
    tensors = []
    for shape in shapes:
        numel = torch.Size(shape).numel()
        drawn = draw(st.lists(values, min_size=numel, max_size=numel))
        tensors.append(torch.tensor(drawn, dtype=torch.float64).to(dtype).reshape(shape))
    keep = draw(st.integers(0, sum(t.numel() for t in tensors)))
    return tensors, keep, draw(st.booleans())


@given(case=cases())
def test_masks_are_those_of_a_stable_sort(case):
    check(*case)


@given(case=cases(st.sampled_from([0.0, -0.0, 1.0])))
def test_ties_are_kept_in_order(case):
    check(*case)


def test_by_hand_across_tensors_of_different_shapes():
    tensors = [torch.tensor([[1.0, -5.0], [3.0, 0.0]]), torch.tensor([3.0, 3.0, -4.0])]
    assert [m.tolist() for m in keep_largest(tensors, 2)] == [
        [[False, False], [True, False]],
        [True, False, False],
    ]
    assert [m.tolist() for m in keep_largest(tensors, 3, absolute=True)] == [
        [[False, True], [True, False]],
        [False, False, True],
    ]
    assert threshold_largest(tensors, 4).item() == 1.0
    assert threshold_largest(tensors, 2, absolute=True).item() == 4.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_of_both_signs_tie(dtype):
    zeros = torch.tensor([-0.0, 0.0, -0.0, 0.0], dtype=dtype)
    for absolute in (False, True):
        assert keep_largest([zeros], 1, absolute=absolute)[0].tolist() == [True] + [False] * 3
    value = threshold_largest([zeros], 1)
    assert value.item() == 0.0
    assert not bool(torch.signbit(value))


def test_infinities_are_values_like_others():
    scores = torch.tensor([-INF, 1.0, INF, -2.0])
    assert keep_largest([scores], 3)[0].tolist() == [False, True, True, True]
    assert keep_largest([scores], 2, absolute=True)[0].tolist() == [True, False, True, False]
    assert threshold_largest([scores], 4).item() == -INF


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("absolute", [False, True])
def test_many_normal_values(dtype, absolute):
    noise = torch.Generator().manual_seed(0)
    tensors = [torch.randn(n, 7, generator=noise).to(dtype) for n in (300, 1, 999)]
    for keep in (1, 17, 4000, 9099):
        check(tensors, keep, absolute)


@pytest.mark.parametrize("keep", [0, 3, 5])
def test_nan_is_refused_at_any_count(keep):
    for nan in (NAN, -NAN):
        tensors = [torch.zeros(2), torch.tensor([1.0, nan, -1.0])]
        with pytest.raises(ValueError, match="NaN"):
            keep_largest(tensors, keep)
        with pytest.raises(ValueError, match="NaN"):
            threshold_largest(tensors, 2, absolute=True)


@pytest.mark.parametrize("keep", [-1, 4])
def test_a_count_out_of_range_is_refused(keep):
    with pytest.raises(ValueError, match=rf"keep={keep} .*from 0 to 3"):
        keep_largest([torch.zeros(3)], keep)
    with pytest.raises(ValueError, match=r"from 1 to 3"):
        threshold_largest([torch.zeros(3)], 0)
    with pytest.raises(TypeError):
        keep_largest([torch.zeros(3)], 1.5)


def test_nothing_to_choose_from():
    assert keep_largest([], 0) == []
    assert keep_largest([torch.empty(0, 3)], 0)[0].shape == (0, 3)


def test_strided_and_mixed_tensors_with_gradient(monkeypatch):
    monkeypatch.setattr(order, "SEGMENT", 16)
    noise = torch.Generator().manual_seed(1)
    wide = torch.randn(40, 30, generator=noise)
    tensors = [
        wide.t().requires_grad_(),
        wide[::3, ::2],
        wide.to(torch.bfloat16)[:5],
        torch.randn(2, 3, 4, 5, generator=noise).to(memory_format=torch.channels_last),
    ]
    for keep in (1, 100, 1500):
        masks = keep_largest(tensors, keep, absolute=True)
        for mask, expected in zip(masks, sorted_masks(tensors, keep, True), strict=True):
            assert torch.equal(mask, expected)
            assert not mask.requires_grad


class TestBracket:
    """The one-pass way of the compiled back end, at sizes small enough to sort."""

    @pytest.fixture(autouse=True)
    def small(self, monkeypatch, backend):
        if backend == "numba":
            monkeypatch.setattr(selection_numba, "BRACKET_FROM", 1)
            monkeypatch.setattr(selection_numba, "SAMPLE", 500)
            monkeypatch.setattr(selection_numba, "STEP", 2)
            monkeypatch.setattr(selection_numba, "PER_THREAD", 1000)
            monkeypatch.setattr(selection_numba, "COLLECTED", 0.2)
        monkeypatch.setattr(order, "SEGMENT", 1 << 10)
        threads = torch.get_num_threads()
        torch.set_num_threads(3)
        yield
        torch.set_num_threads(threads)

    @given(case=cases())
    def test_tiny(self, case):
        check(*case)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_normal_sorted_and_sparse_values(self, dtype):
        noise = torch.Generator().manual_seed(2)
        normal = torch.randn(20_000, generator=noise).to(dtype)
        sparse = normal * (torch.rand(20_000, generator=noise) < 0.2)
        for values in (normal, normal.sort().values, sparse, torch.ones_like(normal)):
            for keep in (1, 3_999, 10_000, 19_999):
                check([values[:7_000], values[7_000:].view(100, 130)], keep, True)
                check([values], keep, False)

    def test_every_rank_around_a_given_bracket(self, monkeypatch):
        values = torch.arange(10.0).repeat(20)
        bits = order.Order(torch.float32)
        low, high = bits.keys(torch.tensor([3.0, 6.0])).numpy()
        monkeypatch.setattr(selection_numba, "_bracket", lambda *_: (low, high))
        monkeypatch.setattr(selection_numba, "COLLECTED", 1.0)
        for keep in range(1, 201):
            found = selection_numba._bracketed([values], keep, bits)
            value, rank = 9 - (keep - 1) // 20, (keep - 1) % 20 + 1
            if 3 <= value <= 6:
                assert found == (int(bits.keys(torch.tensor(float(value)))), rank)
            else:
                assert found is None

    @pytest.mark.parametrize("bits", [0x7F800001, -0x7FFFFF, 0x7FFFFFFF, -1])
    def test_every_kind_of_nan_is_found(self, bits):
        values = torch.zeros(20_000)
        values.view(torch.int32)[12_345] = bits
        with pytest.raises(ValueError, match="NaN"):
            keep_largest([values], 10)
        with pytest.raises(ValueError, match="NaN"):
            keep_largest_per_row(values.view(10, -1), 10)

    def test_nan_outside_the_sample(self):
        values = torch.zeros(20_000)
        values[12_345] = NAN
        with pytest.raises(ValueError, match="NaN"):
            keep_largest([values], 10)

    def test_a_sample_that_misleads_is_noticed(self, monkeypatch, backend):
        values = torch.linspace(1, 2, 1024)
        values[:: 1024 // 500 | 1] *= -1  # the sample sees only these
        if backend == "numba":
            monkeypatch.setattr(selection_numba, "COLLECTED", 1.0)
            bits = order.Order(torch.float32)
            assert selection_numba._bracketed([values], 500, bits) is None
            assert selection_numba._bracketed([values.abs()], 500, bits) is not None
        check([values], 500, False)

    def test_a_bracket_with_too_much_inside_is_given_up(self, monkeypatch, backend):
        values = torch.randn(20_000, generator=torch.Generator().manual_seed(3))
        if backend == "numba":
            monkeypatch.setattr(selection_numba, "COLLECTED", 0.01)
            pieces, bits = order.segments(values), order.Order(torch.float32)
            assert selection_numba._bracketed(pieces, 10_000, bits) is None
        check([values], 10_000, False)


@given(
    rows=st.integers(0, 5),
    cols=st.integers(0, 9),
    dtype=st.sampled_from(DTYPES),
    data=st.data(),
)
def test_rows_are_those_of_a_stable_sort(rows, cols, dtype, data):
    drawn = data.draw(st.lists(VALUES, min_size=rows * cols, max_size=rows * cols))
    scores = torch.tensor(drawn, dtype=torch.float64).to(dtype).reshape(rows, cols)
    keep = torch.tensor(data.draw(st.lists(st.integers(0, cols), min_size=rows, max_size=rows)))
    mask = keep_largest_per_row(scores, keep.to(torch.int32))
    for row, chosen, count in zip(scores, mask, keep.tolist(), strict=True):
        assert torch.equal(chosen, sorted_masks([row], count, False)[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cols", [33, 100, 1500, 5000])
def test_long_rows(dtype, cols):
    noise = torch.Generator().manual_seed(3)
    for scores in (
        torch.randn(6, cols, generator=noise),
        torch.randint(-2, 3, (6, cols), generator=noise).float(),
        torch.randn(cols, 6, generator=noise).t(),
        torch.full((6, cols), -1.0),
    ):
        for keep in (1, cols // 3, cols - 1):
            mask = keep_largest_per_row(scores.to(dtype), keep)
            for row, chosen in zip(scores.to(dtype), mask, strict=True):
                assert torch.equal(chosen, sorted_masks([row], keep, False)[0])


def test_rows_by_hand():
    scores = torch.tensor([[1.0, 3.0, 3.0, 3.0], [-0.0, 0.0, -1.0, -INF]])
    assert keep_largest_per_row(scores, 2).tolist() == [
        [False, True, True, False],
        [True, True, False, False],
    ]
    assert keep_largest_per_row(scores, torch.tensor([4, 1])).tolist() == [
        [True] * 4,
        [True, False, False, False],
    ]


def test_rows_refuse_bad_input():
    scores = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="rows, cols"):
        keep_largest_per_row(torch.zeros(3), 1)
    with pytest.raises(ValueError, match="3 entries"):
        keep_largest_per_row(scores, 4)
    with pytest.raises(ValueError, match="from -1 to 2"):
        keep_largest_per_row(scores, torch.tensor([2, -1]))
    with pytest.raises(ValueError, match="each of the 2 rows"):
        keep_largest_per_row(scores, torch.tensor([1, 1, 1]))
    with pytest.raises(ValueError, match="integer"):
        keep_largest_per_row(scores, 1.0)
    with pytest.raises(ValueError, match="NaN"):
        keep_largest_per_row(torch.tensor([[0.0, 1.0], [NAN, 1.0]]), torch.tensor([1, 2]))
