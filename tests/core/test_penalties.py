import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecraft.core.errors import InvalidValue, NonFinite
from sparsecraft.core.group_envelope import GroupEnvelope, KSupport
from sparsecraft.core.penalties import L0, L1, GroupL2, GroupTopK, SparseGroupL2

CONVEX = {
    "l1": L1(strength=0.7),
    "group l2": GroupL2(strength=0.4),
    "sparse group l2": SparseGroupL2(strength=0.8, share=0.3),
    "k-support": KSupport(k=3, strength=0.9),
    "envelope": GroupEnvelope(k=2, strength=1.3),
    "envelope by size": GroupEnvelope(k=2, weights="size"),
    "envelope, all groups": GroupEnvelope(k=5),
}
OTHERS = {"l0": L0(strength=0.5), "top k": GroupTopK(k=2)}
convex = pytest.mark.parametrize("penalty", CONVEX.values(), ids=CONVEX)
every = pytest.mark.parametrize(
    "penalty", [*CONVEX.values(), *OTHERS.values()], ids=[*CONVEX, *OTHERS]
)


def groups(seed, shape=(5, 3), scale=1.0):
    noise = torch.Generator().manual_seed(seed)
    x = scale * torch.randn(shape, generator=noise, dtype=torch.float64)
    return x * (torch.rand(shape[0], 1, generator=noise) > 0.2)  # some groups are zero


def test_by_hand():
    x = torch.tensor([3.0, -0.5, 1.0])
    assert L1(strength=2).value(x).item() == 9.0
    assert L1(strength=2).prox(x, 0.5).tolist() == [2.0, 0.0, 0.0]
    assert L0(strength=2).value(x).item() == 6.0
    assert L0(strength=2).prox(x, 0.5).tolist() == [3.0, 0.0, 0.0]  # threshold sqrt(2)
    pair = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    assert GroupL2().value(pair).item() == pytest.approx(5.5 * math.sqrt(2))
    factor = 1 - math.sqrt(2) / 5
    assert GroupL2().prox(pair, 1).tolist()[0] == pytest.approx([3 * factor, 4 * factor])
    assert GroupL2().prox(pair, 1).tolist()[1] == [0.0, 0.0]
    assert GroupTopK(k=1).value(pair).item() == math.inf
    assert GroupTopK(k=1).prox(pair, 1).tolist() == [[3.0, 4.0], [0.0, 0.0]]
    # Soft threshold by 0.5 gives (2.5, 3.5), of norm sqrt(18.5); the block threshold is sqrt(2)/2.
    both = SparseGroupL2(share=0.5).prox(torch.tensor([[3.0, 4.0]]), 1)
    shrunk = 1 - math.sqrt(0.5) / math.sqrt(18.5)
    assert both.tolist()[0] == pytest.approx([2.5 * shrunk, 3.5 * shrunk])


def test_ties_keep_exactly_k_groups():
    kept = GroupTopK(k=2).prox(torch.ones(4, 2), 1)
    assert kept[:, 0].tolist() == [1, 1, 0, 0]


def test_a_zero_group_and_a_zero_threshold_give_zero_not_nan():
    zero = torch.zeros(2, 3)
    for penalty in (GroupL2(strength=0.0), GroupL2(), GroupEnvelope(k=1), KSupport(k=1)):
        assert torch.equal(penalty.prox(zero, 0.0), zero)
        assert torch.equal(penalty.prox(zero, 1.0), zero)
        assert float(penalty.value(zero)) == 0.0


@every
@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), step=st.sampled_from([0.0, 0.05, 0.5, 3.0]))
def test_no_nearby_point_is_better_than_the_prox(penalty, seed, step):
    x = groups(seed)

    def objective(z):
        value = float(penalty.value(z))
        return float((z - x).square().sum() / 2) + (
            step * value if step or value < math.inf else value
        )

    found = penalty.prox(x, step)
    best = objective(found)
    noise = torch.Generator().manual_seed(seed + 1)
    for size in (1e-4, 1e-2, 1.0):
        for _ in range(8):
            move = size * torch.randn(x.shape, generator=noise, dtype=torch.float64)
            whole = move * (torch.rand(x.shape[0], 1, generator=noise) > 0.5)
            for other in (found + move, found + whole, found * (1 + whole), x + move):
                assert objective(other) >= best - 1e-9
    for group in range(x.shape[0]):
        for value in (torch.zeros(3), x[group]):
            other = found.clone()
            other[group] = value
            assert objective(other) >= best - 1e-9


@pytest.mark.parametrize(
    "penalty", [L1(strength=0.7), L0(strength=0.7), GroupL2(strength=0.5), KSupport(k=1)]
)
@pytest.mark.parametrize("x", [-2.3, -0.4, 0.0, 0.6, 1.1, 5.0])
def test_one_entry_against_a_fine_grid(penalty, x):
    grid = torch.arange(-60_000, 60_001, dtype=torch.float64) / 10_000
    costs = (grid - x).square() / 2 + 0.8 * _separable(penalty, grid)
    best = grid[costs.argmin()]
    one = torch.tensor([x], dtype=torch.float64)
    assert float(penalty.prox(one, 0.8)) == pytest.approx(float(best), abs=2e-4)


def _separable(penalty, grid):
    if isinstance(penalty, L0):
        return penalty.strength * (grid != 0)
    return penalty.strength * (grid.square() / 2 if isinstance(penalty, KSupport) else grid.abs())


@convex
@given(seed=st.integers(0, 10**6), step=st.sampled_from([0.05, 0.5, 3.0]))
def test_the_prox_of_a_convex_penalty_is_firmly_non_expansive(penalty, seed, step):
    x, y = groups(seed), groups(seed + 1, scale=2.0)
    moved = penalty.prox(x, step) - penalty.prox(y, step)
    assert float(moved.square().sum()) <= float((moved * (x - y)).sum()) + 1e-9


@convex
@given(seed=st.integers(0, 10**6))
def test_a_convex_penalty_lies_below_its_chords(penalty, seed):
    x, y = groups(seed), groups(seed + 1)
    ends = (penalty.value(x) + penalty.value(y)) / 2
    assert float(penalty.value((x + y) / 2)) <= float(ends) + 1e-9


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_type_and_shape_stay(penalty, dtype):
    x = groups(0).to(dtype)
    found = penalty.prox(x, 0.3)
    assert found.dtype == dtype and found.shape == x.shape
    reference = penalty.prox(x.double(), 0.3)
    assert torch.allclose(found.double(), reference, atol=0.02 if dtype == torch.bfloat16 else 1e-6)


@pytest.mark.parametrize("penalty", [*CONVEX.values(), OTHERS["l0"]], ids=[*CONVEX, "l0"])
def test_a_step_of_zero_gives_the_argument(penalty):
    x = groups(3)
    assert torch.allclose(penalty.prox(x, 0.0), x)


@every
@pytest.mark.parametrize("step", [-0.1, math.nan, math.inf])
def test_a_step_that_is_none_is_refused(penalty, step):
    with pytest.raises(InvalidValue, match="step="):
        penalty.prox(groups(0), step)


@pytest.mark.parametrize("make", [L1, L0, GroupL2, SparseGroupL2])
@pytest.mark.parametrize("strength", [-1.0, math.nan, math.inf, "1"])
def test_a_strength_that_is_none_is_refused(make, strength):
    with pytest.raises(InvalidValue, match=r"strength=.*at least 0"):
        make(strength=strength)


@pytest.mark.parametrize("k", [0, -1, 1.5, True, "2"])
def test_a_count_that_is_none_is_refused(k):
    with pytest.raises(InvalidValue, match=r"k=.*integer from 1"):
        GroupTopK(k=k)


def test_more_groups_than_there_are_are_refused():
    with pytest.raises(InvalidValue, match="k=6 is not allowed: give an integer from 1 to 5"):
        GroupTopK(k=6).prox(groups(0), 1.0)


def test_a_share_outside_is_refused():
    with pytest.raises(InvalidValue, match=r"share=1.5.*\[0, 1\]"):
        SparseGroupL2(share=1.5)


@pytest.mark.parametrize("penalty", [GroupL2(), GroupTopK(k=1), GroupEnvelope(k=1)])
def test_unfit_tensors_are_refused(penalty):
    with pytest.raises(InvalidValue, match=r"torch.int64: give a floating tensor"):
        penalty.prox(torch.ones(3, 2, dtype=torch.int64), 1.0)
    with pytest.raises(InvalidValue, match=r"shape \(\)"):
        penalty.value(torch.tensor(1.0))
    for bad in (math.nan, math.inf):
        with pytest.raises(NonFinite, match=r"1 of 3 groups hold NaN or infinite entries.*group 1"):
            penalty.prox(torch.tensor([[1.0], [bad], [2.0]]), 1.0)


def test_importing_the_penalties_does_not_import_numba():
    code = "import sys, sparsecraft.core.group_envelope; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
