"""Selections of both back ends against a plain sort."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.kernels.backends import use_backend
from sparsecraft.kernels.codes import select_columns, select_rows, select_whole

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
NAN = float("nan")


@pytest.fixture(autouse=True, params=["torch", "numba"])
def backend(request):
    with use_backend(request.param):
        yield request.param


def sorted_rows(scores, keep, absolute):
    """Starts and columns the plain way: each row sorted stably, what is not positive left out."""
    starts, columns = [0], []
    for row in (scores.abs() if absolute else scores).double():
        best = row.sort(descending=True, stable=True).indices[:keep]
        taken = sorted(int(j) for j in best if row[j] > 0)
        columns += taken
        starts.append(starts[-1] + len(taken))
    return torch.tensor(starts), torch.tensor(columns, dtype=torch.int64)


@st.composite
def cases(draw):
    rows, width = draw(st.integers(1, 4)), draw(st.integers(1, 70))
    # Few values, so that ties at the threshold are the rule.
    values = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 2.0, float("inf")])
    drawn = draw(st.lists(values, min_size=rows * width, max_size=rows * width))
    scores = torch.tensor(drawn).reshape(rows, width).to(draw(st.sampled_from(DTYPES)))
    return scores, draw(st.integers(0, width)), draw(st.booleans())


@given(cases())
def test_rows_are_those_of_a_stable_sort(case):
    scores, keep, absolute = case
    starts, columns = select_rows(scores, keep, absolute=absolute)
    expected = sorted_rows(scores, keep, absolute)
    assert torch.equal(starts, expected[0])
    assert torch.equal(columns, expected[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keep", [1, 5, 40])
@pytest.mark.parametrize("absolute", [False, True])
def test_wide_rows_in_strips_are_exact(dtype, keep, absolute):
    scores = torch.randn(6, 3001, generator=torch.Generator().manual_seed(keep)).to(dtype)
    scores[1] = (2 * scores[1]).round()
    scores[2] = -scores[2].abs()
    starts, columns = select_rows(scores, keep, absolute=absolute)
    expected = sorted_rows(scores, keep, absolute)
    assert torch.equal(starts, expected[0])
    assert torch.equal(columns, expected[1])


def test_two_threads_select_what_one_does():
    scores = torch.randn(300, 4000, generator=torch.Generator().manual_seed(1))
    one = select_rows(scores, 9)
    torch.set_num_threads(2)
    try:
        two = select_rows(scores, 9)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])


def test_the_negative_half_and_zeros_are_never_selected():
    scores = torch.tensor([[-3.0, 0.0, 1.0], [-1.0, -2.0, 0.0]])
    starts, columns = select_rows(scores, 2)
    assert (starts.tolist(), columns.tolist()) == ([0, 1, 1], [2])
    starts, columns = select_rows(scores, 2, absolute=True)
    assert (starts.tolist(), columns.tolist()) == ([0, 2, 4], [0, 2, 0, 1])


def test_the_whole_matrix_has_one_budget():
    scores = torch.tensor([[5.0, -9.0, 1.0], [4.0, 3.0, 0.0]])
    starts, columns = select_whole(scores, 3)
    assert (starts.tolist(), columns.tolist()) == ([0, 1, 3], [0, 0, 1])
    starts, columns = select_whole(scores, 2, absolute=True)
    assert (starts.tolist(), columns.tolist()) == ([0, 2, 2], [0, 1])
    starts, columns = select_whole(-scores.abs(), 4)
    assert (starts.tolist(), columns.tolist()) == ([0, 0, 0], [])


@pytest.mark.parametrize("block", [1, 6, 1 << 22])
def test_columns_have_budgets_of_their_own(block, monkeypatch):
    monkeypatch.setattr("sparsecraft.kernels.codes.selection.TURNED", block)
    scores = torch.tensor([[1.0, -5.0, 2.0], [3.0, 4.0, 2.0], [2.0, -1.0, 2.0]])
    starts, columns = select_columns(scores, torch.tensor([2, 1, 1]))
    assert (starts.tolist(), columns.tolist()) == ([0, 1, 3, 4], [2, 0, 1, 0])
    starts, columns = select_columns(scores, torch.tensor([0, 2, 0]), absolute=True)
    assert (starts.tolist(), columns.tolist()) == ([0, 1, 2, 2], [1, 1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sign", [1, -1])
def test_nan_of_either_sign_has_no_rank(dtype, sign):
    scores = torch.ones(3, 40, dtype=dtype)
    scores[1, 7] = torch.copysign(torch.tensor(NAN), torch.tensor(float(sign))).to(dtype)
    with pytest.raises(ValueError, match="hold NaN"):
        select_rows(scores, 3)


def test_budgets_and_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"keep=4 is not allowed: each row has 3 entries"):
        select_rows(torch.ones(2, 3), 4)
    with pytest.raises(ValueError, match=r"keep=-1 is not allowed"):
        select_rows(torch.ones(2, 3), -1)
    with pytest.raises(ValueError, match=r"must be \(rows, width\), not of shape \(3,\)"):
        select_rows(torch.ones(3), 1)
    with pytest.raises(ValueError, match=r"torch.int64 cannot be ordered"), use_backend("torch"):
        select_rows(torch.ones(2, 3, dtype=torch.int64), 1)


def test_no_rows_and_strided_scores():
    starts, columns = select_rows(torch.empty(0, 5), 2)
    assert (starts.tolist(), columns.tolist()) == ([0], [])
    scores = torch.tensor([[1.0, 4.0], [3.0, 2.0]]).T
    assert select_rows(scores, 1)[1].tolist() == [1, 0]
