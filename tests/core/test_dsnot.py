import pytest
import torch

from sparsecraft.core.dsnot import dsnot_groups, dsnot_rows
from sparsecraft.core.errors import InvalidValue, NonFinite, UnknownName

WEIGHT = torch.tensor([[2.0, -1.0, 3.0, 0.5], [-2.0, 1.0, -3.0, -0.5]])
KEEP = torch.tensor([[False, True, True, False], [False, True, True, False]])
ONES = torch.ones(4)


def rows(weight=WEIGHT, sums=ONES, squares=ONES, variances=ONES, keep=KEEP, **options):
    return dsnot_rows(weight, sums, squares, variances, keep, **options)


def groups(keep=KEEP, scores=None, of=2, **options):
    worth = WEIGHT.abs() if scores is None else scores
    return dsnot_groups(WEIGHT, ONES, ONES, keep, worth, of, **options)


def test_the_steadier_input_comes_back():
    """2.5 is lost. 2 / 8 is less than .5 / 1, which comes back for -1."""
    variances = torch.tensor([8.0, 1.0, 1.0, 1.0])
    found = rows(variances=variances)
    assert found.keep.int().tolist() == [[0, 0, 1, 1], [0, 0, 1, 1]]
    assert found.before.tolist() == [2.5, -2.5] and found.after.tolist() == [1.0, -1.0]


def test_the_power_decides_how_much_the_variance_counts():
    variances = torch.tensor([2.0, 1.0, 1.0, 1.0])
    # 2 / sqrt(2) > .5 > 2 / 2^3. -1 for 2 leaves -.5, which only "threshold" allows.
    options = {"variances": variances, "stop": "threshold", "cycles": 1}
    assert rows(**options, variance_power=0.5).keep[0].int().tolist() == [1, 0, 1, 0]
    assert rows(**options, variance_power=3).keep[0].int().tolist() == [0, 0, 1, 1]


def test_a_constant_input_is_as_steady_as_the_steadiest_that_varies():
    variances = torch.tensor([8.0, 1.0, 1.0, 0.0])
    expected = rows(variances=torch.tensor([8.0, 1.0, 1.0, 1.0]))
    assert torch.equal(rows(variances=variances).keep, expected.keep)
    assert torch.equal(rows(variances=0 * ONES).keep, rows().keep)
    assert torch.equal(
        rows(variances=0 * ONES, variance_power=2, stop="threshold").keep,
        rows(variance_power=0, stop="threshold").keep,
    )


def test_tiny_variances_to_a_high_power_stay_finite():
    found = rows(variances=torch.tensor([1e-30, 1e-20, 1e-10, 1.0]), variance_power=9.0)
    assert torch.isfinite(found.after).all() and found.keep.sum(1).tolist() == [2, 2]


def test_rows_that_keep_different_numbers_keep_them():
    keep = torch.tensor([[False, True, True, True], [False, False, False, False]])
    assert rows(keep=keep, stop="threshold").keep.sum(1).tolist() == [3, 0]


def test_half_precision_is_read_as_float32():
    found = rows(weight=WEIGHT.bfloat16(), sums=ONES.bfloat16())
    assert torch.equal(found.keep, rows().keep)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"weight": WEIGHT[0]}, InvalidValue, r"a weight of shape \(4,\)"),
        ({"keep": KEEP[:1]}, InvalidValue, r"shape \(1, 4\) do not fit"),
        ({"keep": KEEP.int()}, InvalidValue, r"a mask of torch.int32"),
        ({"sums": torch.ones(3)}, InvalidValue, r"sums has shape \(3,\), but the weight has 4"),
        ({"squares": -ONES}, InvalidValue, "squares has negative entries"),
        ({"variances": -ONES}, InvalidValue, "variances has negative entries"),
        ({"weight": WEIGHT / 0}, NonFinite, "weight has 8 NaN or infinite"),
        ({"sums": ONES / 0}, NonFinite, "sums has 4 NaN or infinite"),
        ({"cycles": -1}, InvalidValue, "cycles=-1"),
        ({"threshold": float("nan")}, InvalidValue, "threshold=nan"),
        ({"variance_power": float("inf")}, InvalidValue, "variance_power=inf"),
        ({"stop": "sign"}, UnknownName, "Unknown stop 'sign'"),
    ],
)
def test_bad_input(options, error, words):
    with pytest.raises(error, match=words):
        rows(**options)


def test_masks_that_are_not_n_of_m():
    uneven = torch.tensor([[True, True, False, True], [False, True, True, False]])
    with pytest.raises(InvalidValue, match="not N:2: group 0 of row 0 keeps 2, group 1 of row 0"):
        groups(keep=uneven)
    with pytest.raises(InvalidValue, match="4 inputs do not divide into groups of 3"):
        groups(of=3)
    with pytest.raises(NonFinite, match="scores has"):
        groups(scores=WEIGHT / 0)


def test_groups_swap_within():
    """2 takes the place of -1, its neighbour; .5 for 3 would turn the sign."""
    keep = torch.tensor([[False, True, True, False], [False, True, True, False]])
    found = groups(keep=keep, threshold=0.0)
    assert found.keep.int().tolist() == [[0, 1, 1, 0], [0, 1, 1, 0]]
    swapped = dsnot_groups(2 * WEIGHT, ONES, torch.tensor([9.0, 1, 1, 1]), keep, WEIGHT.abs(), 2)
    # .5 * 2 = 1 is steadier than 4 / 9 and takes the place of 6: 5 + 6 - 1 = 10, then 4 of -2: 4.
    assert swapped.after.tolist() == [4.0, -4.0]
    assert swapped.keep.int().tolist() == [[1, 0, 0, 1], [1, 0, 0, 1]]
