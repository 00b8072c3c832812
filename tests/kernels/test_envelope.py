import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.kernels.backends import use_backend
from sparsecraft.kernels.envelope import breakpoints, clipped_ramps, ramp_root, sorted_root

INF = float("inf")


@pytest.fixture(autouse=True, params=["torch", "numba"])
def backend(request):
    with use_backend(request.param):
        yield request.param


def wide(values):
    return torch.tensor(values, dtype=torch.float64)


def test_by_hand():
    # 3 eta is cut at 1, and 2 eta + eta = 1 at a third: the first ramp stands at 1 just then.
    assert ramp_root(wide([[3.0, 2.0, 1.0]]), wide([[0.0]]), torch.tensor([2])).item() == 1 / 3
    # With offsets 1, 2: (4 eta - 1) + (2 eta - 2) = 1 at 2/3, where the first is above 1; so the
    # root lies at (2 eta - 2) = 0 or before, where 4 eta - 1 = 1.
    root = ramp_root(wide([[4.0, 2.0]]), wide([[1.0, 2.0]]), torch.tensor([1]))
    assert clipped_ramps(wide([[4.0, 2.0]]), wide([[1.0, 2.0]]), root).tolist() == [[1.0, 0.0]]


def test_few_positive_slopes():
    slopes = wide([[2.0, 0.0, 0.5], [2.0, 0.0, 0.5], [0.0, 0.0, 0.0]])
    root = ramp_root(slopes, wide([[1.0], [1.0], [1.0]]), torch.tensor([2, 3, 1]))
    assert root.tolist() == [4.0, INF, INF]  # (1 + 1) / 0.5 raises both to 1
    ramps = clipped_ramps(slopes, wide([[1.0]] * 3), root)
    assert ramps.tolist() == [[1, 0, 1], [1, 0, 1], [0, 0, 0]]


@given(
    m=st.integers(1, 40),
    coarse=st.booleans(),
    shared=st.booleans(),
    offset=st.sampled_from([0.0, 1e-6, 1.0, 1e6]),
    seed=st.integers(0, 10**6),
)
def test_the_ramps_sum_to_what_is_kept(m, coarse, shared, offset, seed):
    noise = torch.Generator().manual_seed(seed)
    slopes = torch.rand(5, m, generator=noise, dtype=torch.float64)
    slopes = (4 * slopes).round() / 4 if coarse else slopes  # ties, and zeros
    slopes[torch.rand(5, m, generator=noise) < 0.2] = 0
    offsets = offset * torch.rand(5, 1 if shared else m, generator=noise, dtype=torch.float64)
    keep = torch.randint(1, m + 1, (5,), generator=noise)
    root = ramp_root(slopes, offsets, keep)
    sums = clipped_ramps(slopes, offsets, root).sum(1)
    reached = torch.minimum(keep, (slopes > 0).sum(1)).double()
    assert torch.allclose(sums, reached, rtol=0, atol=1e-9 * max(1, offset))


@given(m=st.integers(1, 60), seed=st.integers(0, 10**6), spread=st.sampled_from([0, 3, 30]))
def test_selection_gives_what_sorting_gives(m, seed, spread):
    noise = torch.Generator().manual_seed(seed)
    slopes = torch.exp(spread * torch.randn(4, m, generator=noise, dtype=torch.float64))
    offsets = torch.rand(4, m, generator=noise, dtype=torch.float64)
    keep = torch.randint(1, m + 1, (4,), generator=noise)
    found, expected = ramp_root(slopes, offsets, keep), sorted_root(slopes, offsets, keep)
    ramps = [clipped_ramps(slopes, offsets, root) for root in (found, expected)]
    assert torch.allclose(*ramps, rtol=0, atol=1e-9)


def test_many_ramps_agree_with_bisection():
    noise = torch.Generator().manual_seed(0)
    slopes = torch.randn(1, 50_000, generator=noise, dtype=torch.float64).abs()
    offsets = wide([[0.3]])
    root = float(ramp_root(slopes, offsets, torch.tensor([7_000])))
    low, high = 0.0, float(breakpoints(slopes, offsets.expand_as(slopes))[1].max())
    for _ in range(200):
        middle = (low + high) / 2
        if float((middle * slopes - offsets).clamp(0, 1).sum()) < 7_000:
            low = middle
        else:
            high = middle
    assert root == pytest.approx(low, rel=1e-12)


def test_all_equal_and_all_zero():
    offsets = wide([[0.5]])
    equal = wide([[2.0] * 6])
    root = ramp_root(equal, offsets, torch.tensor([3]))
    assert clipped_ramps(equal, offsets, root).tolist() == [[0.5] * 6]
    assert ramp_root(torch.zeros(1, 6).double(), offsets, torch.tensor([3])).item() == INF


def test_rows_without_entries_and_no_rows():
    assert ramp_root(torch.zeros(0, 3).double(), torch.zeros(0, 1).double(), _ints()).numel() == 0


def test_slopes_so_small_that_they_never_reach_one():
    slopes = wide([[1e-320, 1.0]])
    assert ramp_root(slopes, wide([[0.0]]), torch.tensor([1])).item() == 1.0
    assert ramp_root(slopes, wide([[0.0]]), torch.tensor([2])).item() == INF


@pytest.mark.parametrize(
    ("slopes", "offsets", "keep", "message"),
    [
        (torch.zeros(1, 3), wide([[0.0]]), torch.tensor([1]), "must be float64, not torch.float32"),
        (wide([[1.0, 2.0]]), wide([[0.0] * 3]), torch.tensor([1]), r"\(1, 3\)"),
        (wide([1.0]), wide([[0.0]]), torch.tensor([1]), "do not fit"),
        (wide([[1.0]]), wide([[0.0]]), torch.tensor([1, 1]), "do not fit"),
        (wide([[1.0]]), wide([[0.0]]), torch.tensor([0]), "at least 1"),
        (wide([[1.0]]), wide([[0.0]]), torch.tensor([1.0]), "int64"),
    ],
)
def test_what_does_not_fit_is_refused(slopes, offsets, keep, message):
    with pytest.raises(ValueError, match=message):
        ramp_root(slopes, offsets, keep)


def _ints():
    return torch.zeros(0, dtype=torch.int64)
