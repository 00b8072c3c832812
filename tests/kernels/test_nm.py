import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.kernels.backends import use_backend
from sparsecraft.kernels.nm import nm_mask

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
INF = float("inf")


@pytest.fixture(autouse=True, params=["torch", "numba"])
def backend(request):
    with use_backend(request.param):
        yield request.param


def sorted_mask(scores, keep, of):
    groups = scores.double().reshape(-1, of) + 0.0
    ranked = groups.sort(dim=1, descending=True, stable=True).indices
    mask = torch.zeros(groups.shape, dtype=torch.bool)
    return mask.scatter_(1, ranked[:, :keep], True).view(scores.shape)


def test_by_hand_one_of_four_keeps_one():
    scores = torch.tensor([[1.0, 9.0, 2.0, 3.0, -1.0, -3.0, -2.0, -4.0]])
    assert nm_mask(scores, keep=1, of=4).int().tolist() == [[0, 1, 0, 0, 1, 0, 0, 0]]
    assert nm_mask(scores, keep=3, of=4).int().tolist() == [[0, 1, 1, 1, 1, 1, 1, 0]]


def test_ties_keep_the_earlier_entry():
    scores = torch.tensor([5.0, 5.0, 5.0, 5.0, -0.0, 0.0, -0.0, 0.0, -INF, INF, -INF, INF])
    assert nm_mask(scores, 2, 4).int().tolist() == [1, 1, 0, 0, 1, 1, 0, 0, 0, 1, 0, 1]


def test_every_order_of_four_values_with_repeats():
    scores = torch.tensor(list(itertools.product([0.0, 1.0, 2.0, 3.0], repeat=4)))
    for keep in range(5):
        assert torch.equal(nm_mask(scores, keep, 4), sorted_mask(scores, keep, 4))


@given(
    of=st.sampled_from([1, 2, 3, 4, 7, 8, 16, 32, 33, 40]),
    leading=st.sampled_from([(), (3,), (2, 0), (2, 1, 3)]),
    groups=st.integers(0, 3),
    dtype=st.sampled_from(DTYPES),
    data=st.data(),
)
def test_the_largest_of_each_group_are_kept(of, leading, groups, dtype, data):
    shape = (*leading, groups * of)
    numel = torch.Size(shape).numel()
    values = st.sampled_from([-1.0, -0.0, 0.0, 1.0]) | st.floats(allow_nan=False, width=16)
    drawn = data.draw(st.lists(values, min_size=numel, max_size=numel))
    scores = torch.tensor(drawn, dtype=torch.float64).to(dtype).reshape(shape)
    keep = data.draw(st.integers(0, of))
    mask = nm_mask(scores, keep, of)
    assert mask.shape == scores.shape
    assert torch.equal(mask, sorted_mask(scores, keep, of))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("keep", "of"), [(2, 4), (4, 8), (8, 16), (3, 5), (16, 64)])
def test_many_groups_on_several_threads(dtype, keep, of):
    noise = torch.Generator().manual_seed(0)
    scores = torch.randn(701, 17 * of, generator=noise).to(dtype)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(nm_mask(scores, keep, of), sorted_mask(scores, keep, of))
    finally:
        torch.set_num_threads(threads)


def test_strided_scores_with_gradient():
    scores = torch.randn(12, 8, generator=torch.Generator().manual_seed(1)).t().requires_grad_()
    mask = nm_mask(scores, 2, 4)
    assert torch.equal(mask, sorted_mask(scores.detach(), 2, 4))
    assert not mask.requires_grad


@pytest.mark.parametrize("place", [0, 70, 259])
@pytest.mark.parametrize("keep", [0, 2, 4])
def test_nan_is_refused(place, keep):
    scores = torch.zeros(260)
    scores[place] = -float("nan")
    with pytest.raises(ValueError, match="NaN"):
        nm_mask(scores, keep, 4)


def test_bad_groups_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 6\).*groups of 4"):
        nm_mask(torch.zeros(2, 6), 2, 4)
    with pytest.raises(ValueError, match="groups of 1"):
        nm_mask(torch.tensor(1.0), 1, 1)
    for keep, of in ((5, 4), (-1, 4), (0, 0)):
        with pytest.raises(ValueError, match=rf"keep={keep} of={of}"):
            nm_mask(torch.zeros(8), keep, of)


def test_other_types_are_refused():
    with pytest.raises(ValueError, match="int64"):
        nm_mask(torch.zeros(8, dtype=torch.int64), 2, 4)
