import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.core import iso_flop
from sparsecraft.core.errors import BudgetError, InvalidValue

sizes = st.integers(1, 600)
kernels = st.sampled_from([1, 9, 25])
sparsities = st.floats(0.0, 0.99)


@pytest.mark.parametrize(("sparsity", "width"), [(0, 64), (0.5, 90), (0.75, 128), (0.9, 202)])
def test_the_widths_of_the_official_code(sparsity, width):
    assert iso_flop.wide_widths({"first": 64}, sparsity) == {"first": width}


def test_stages_keep_their_proportion_to_the_base_or_are_rounded_each():
    stages = {"a": 64, "b": 128, "c": 256, "d": 512}
    proportional = iso_flop.wide_widths(stages, 0.5, base=64)
    assert list(proportional.values()) == [90, 180, 360, 720]
    assert list(iso_flop.wide_widths(stages, 0.5).values()) == [90, 181, 362, 724]


def test_growth_is_rounded_where_it_is_nearly_whole_or_where_that_is_asked():
    assert iso_flop.growth(0.9) == 10.0 != 1 / (1 - 0.9)
    assert iso_flop.growth(2 / 3) == 3.0
    assert iso_flop.growth(0.6) == pytest.approx(2.5)
    assert iso_flop.growth(0.7, whole_growth=True) == 3.0
    assert iso_flop.width_multiplier(0.75) == 2.0


@given(sizes, sizes, sparsities)
def test_wide_is_iso_flop_before_rounding(inputs, outputs, sparsity):
    k = math.sqrt(1 / (1 - sparsity))
    assert k * inputs * k * outputs * (1 - sparsity) == pytest.approx(inputs * outputs)
    assert iso_flop.width_multiplier(sparsity) == pytest.approx(k, rel=1e-3)


@pytest.mark.parametrize("branches", [1, 2, 3, 4, 5, 7, 10, 20, 100])
def test_parallel_is_iso_flop(branches):
    assert iso_flop.parallel_branches(1 - 1 / branches) == branches


def test_branches_are_whole():
    assert iso_flop.parallel_branches(0.6667) == 3  # within 1e-3
    with pytest.raises(InvalidValue, match=r"2\.5 parallel branches.*Give 0\.5 for 2 or 0\.66"):
        iso_flop.parallel_branches(0.6)


@given(sizes, sizes, kernels, sparsities)
def test_factorised_is_iso_flop_up_to_one_rank(inputs, outputs, kernel, sparsity):
    budget, density = kernel * inputs * outputs, 1 - sparsity
    for sparse, second in (("both", density), ("U", 1.0)):
        rank = iso_flop.factorized_rank(inputs, outputs, kernel, sparsity, sparse=sparse)
        one = density * kernel * inputs + second * outputs
        assert rank >= 1
        # One unit of rank is the rounding; the cleaning of quotients adds a millionth.
        assert -1e-6 * one <= rank * one - budget + 1e-6 * one
        assert rank * one - budget < one


@given(sizes, sizes, kernels, sparsities)
def test_doped_is_iso_flop_up_to_one_rank(inputs, outputs, kernel, sparsity):
    budget = kernel * inputs * outputs
    rank = iso_flop.doped_rank(inputs, outputs, kernel, sparsity)
    one = kernel * inputs + outputs
    left = budget - ((1 - sparsity) * budget + rank * one)
    assert -1e-6 * one <= left < one


def test_ranks_by_hand():
    assert iso_flop.factorized_rank(64, 64, 9, 0.5) == math.ceil(36864 / (0.5 * 640))  # 116
    assert iso_flop.factorized_rank(64, 64, 9, 0.9) == 576  # 36864 / 64 exactly
    assert iso_flop.factorized_rank(64, 128, 9, 0.5, sparse="U") == math.ceil(73728 / 416)  # 178
    assert iso_flop.factorized_rank(100, 50, 1, 0) == math.ceil(5000 / 150)
    assert iso_flop.doped_rank(64, 64, 9, 0.9) == math.floor(0.9 * 57.6)  # 51
    assert iso_flop.doped_rank(64, 64, 9, 0) == 0
    assert iso_flop.wide_factorized_rank(64, 64, 9, 128, 128) == math.ceil(36864 / 1280)  # 29


def test_bad_settings():
    with pytest.raises(InvalidValue, match=r"sparsity=1.0 is not allowed.*in \[0, 1\)"):
        iso_flop.growth(1.0)
    with pytest.raises(InvalidValue, match=r"For 75 % write 0\.75"):
        iso_flop.wide_widths({"a": 4}, 75)
    with pytest.raises(InvalidValue, match="give 'both' or 'U'"):
        iso_flop.factorized_rank(4, 4, 1, 0.5, sparse="V")
    with pytest.raises(InvalidValue, match="base=0"):
        iso_flop.wide_widths({"a": 4}, 0.5, base=0)
    with pytest.raises(InvalidValue, match="every=0"):
        iso_flop.rigl_step_flops(1, 1, 0)


@given(st.floats(0, 50), st.floats(101, 1e6))
def test_the_solved_sparsity_meets_the_budget(fixed, sparse):
    solved = iso_flop.matched_sparsity(lambda s: fixed + sparse * (1 - s), 100.0)
    assert fixed + sparse * (1 - solved) == pytest.approx(100, rel=1e-3)


def test_a_budget_that_cannot_be_met():
    with pytest.raises(BudgetError, match=r"layers that stay dense alone cost 1\.200"):
        iso_flop.matched_sparsity(lambda s: 120 + 10 * (1 - s), 100)
    with pytest.raises(BudgetError, match=r"costs 0\.500 of the budget"):
        iso_flop.matched_sparsity(lambda s: 50 * (1 - s), 100)
    assert iso_flop.matched_sparsity(lambda s: 100 * (1 - s), 100) == 0.0


def test_a_rigl_step_counts_the_dense_gradient():
    assert iso_flop.rigl_step_flops(10, 100, 99) == pytest.approx((3 * 990 + 20 + 100) / 100)
    assert iso_flop.rigl_step_flops(7, 7, 5) == pytest.approx(21)
