"""Swaps between kept and pruned entries: by hand, against a plain loop, and their laws."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.kernels.backends import use_backend
from sparsecraft.kernels.mask_swaps import Stop, swap_in_groups, swap_in_rows
from sparsecraft.kernels.nm import nm_mask
from sparsecraft.kernels.selection import keep_largest_per_row

BACKENDS = ["torch", "numba"]


def drawn(seed, rows, columns, *, coarse):
    """Returns weight, sums, spreads and norms; coarse ones tie often, and some are zero."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=draw)
    sums = torch.randn(columns, generator=draw)
    spreads, norms = torch.rand(2, columns, generator=draw) + 0.1
    if coarse:
        weight, sums, norms = (2 * weight).round(), sums.round(), (2 * norms).round()
        spreads = spreads.round() + 1
    return weight, sums, spreads, norms


def by_loop(weight, sums, spreads, keep, partner, stop, skips=False):
    """Returns (keep, loss) of one row, written down as the paper says it."""
    share = [float(w * s) for w, s in zip(weight, sums, strict=True)]
    steady = [float(w * s / v) for w, s, v in zip(weight, sums, spreads, strict=True)]
    given, keep = list(keep), list(keep)
    loss = first = sum(c for c, k in zip(share, keep, strict=True) if not k)
    grown_before, cut_before = set(), set()
    for _ in range(stop.cycles):
        if abs(loss) <= stop.threshold:
            break
        sign = 1 if loss > 0 else -1
        grow = [
            j
            for j in range(len(share))
            if not given[j] and j not in grown_before and sign * steady[j] > 0
        ]
        if not grow:
            break
        grown = max(grow, key=lambda j: (sign * steady[j], -j))
        grown_before.add(grown)
        usable = [j for j in range(len(share)) if given[j] and j not in cut_before]
        cut = partner(usable, share, sign, grown)
        if cut is None:
            if skips:
                continue
            break
        cut_before.add(cut)
        after = loss + share[cut] - share[grown]
        if stop.same_sign and (after > 0) - (after < 0) != (first > 0) - (first < 0):
            break
        keep[cut], keep[grown], loss = False, True, after
    return keep, loss


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend):
    # Contributions 2 -1 3 .5 -4; pruned are 2 and .5, so 2.5 is lost.
    weight = torch.tensor([[2.0, -1.0, 3.0, 0.5, -4.0]])
    ones, keep = torch.ones(5), torch.tensor([[False, True, True, False, True]])
    spreads = torch.tensor([8.0, 1.0, 1.0, 1.0, 1.0])
    stop = Stop(cycles=9, threshold=0.1, same_sign=True)
    with use_backend(backend):
        found = swap_in_rows(weight, ones, ones, ones, keep, stop)
        # 2 comes back for -1: -0.5 would have another sign, so nothing happens.
        assert torch.equal(found.keep, keep) and found.swaps.tolist() == [0]
        # With a spread of 8 it is only 1/4; .5 is steadier and comes back for -1: 1 is left.
        found = swap_in_rows(weight, ones, spreads, ones, keep, stop)
        assert found.keep.int().tolist() == [[0, 0, 1, 1, 1]]
        assert (found.before.item(), found.after.item(), found.swaps.item()) == (2.5, 1.0, 1)
        # On past zero: 2 comes back for -4 and -5 is lost; then -1 is no candidate any more.
        found = swap_in_rows(
            weight, ones, spreads, ones, keep, Stop(**{**vars(stop), "same_sign": False})
        )
        assert found.keep.int().tolist() == [[1, 0, 1, 1, 0]]
        assert (found.after.item(), found.swaps.item()) == (-5.0, 2)
    assert keep.int().tolist() == [[0, 1, 1, 0, 1]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_groups_by_hand(backend):
    # 1:2 groups; 3 and 2 are lost. 3 can only take the place of 1.
    weight = torch.tensor([[3.0, 1.0, 2.0, -4.0]])
    keep = torch.tensor([[False, True, False, True]])
    ones, stop = torch.ones(4), Stop(cycles=9, threshold=0.1, same_sign=True)
    with use_backend(backend):
        found = swap_in_groups(weight, ones, ones, weight.abs(), keep, 2, stop)
    # 5 + 1 - 3 = 3; then 2 for -4 would leave -3.
    assert found.keep.int().tolist() == [[1, 0, 0, 1]]
    assert (found.before.item(), found.after.item(), found.swaps.item()) == (5.0, 3.0, 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_group_without_a_partner_costs_a_cycle(backend):
    # 1:3, three columns a group: 5 takes the place of 1, then 4 finds nobody, then 2 goes for .5.
    weight = torch.tensor([[5.0, 4.0, 1.0, 2.0, 0.5, 0.0]])
    keep = torch.tensor([[False, False, True, False, True, False]])
    ones = torch.ones(6)
    for cycles, kept in ((2, [[1, 0, 0, 0, 1, 0]]), (3, [[1, 0, 0, 1, 0, 0]])):
        with use_backend(backend):
            stop = Stop(cycles=cycles, threshold=0.0, same_sign=True)
            found = swap_in_groups(weight, ones, ones, weight.abs(), keep, 3, stop)
        assert found.keep.int().tolist() == kept


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("same_sign", [False, True])
@given(
    seed=st.integers(0, 999),
    columns=st.integers(1, 150),
    density=st.floats(0, 1),
    cycles=st.sampled_from([0, 1, 5, 400]),
)
def test_rows_are_those_of_a_plain_loop(coarse, same_sign, seed, columns, density, cycles):
    weight, sums, spreads, norms = drawn(seed, 3, columns, coarse=coarse)
    keep = keep_largest_per_row(weight.abs() * norms, int(density * columns))
    stop = Stop(cycles=cycles, threshold=0.1, same_sign=same_sign)
    outcomes = []
    for backend in BACKENDS:
        with use_backend(backend):
            outcomes.append(swap_in_rows(weight, sums, spreads, norms, keep, stop))
    for r in range(3):
        cost = [float(w * n) for w, n in zip(weight[r].abs(), norms, strict=True)]

        def cheapest(usable, share, sign, grown, cost=cost):
            other = [j for j in usable if sign * share[j] < 0]
            return min(other, key=lambda j: (cost[j], j)) if other else None

        kept, loss = by_loop(weight[r], sums, spreads, keep[r].tolist(), cheapest, stop)
        for found in outcomes:
            assert found.keep[r].tolist() == kept
            assert found.after[r].item() == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize(("kept", "of"), [(2, 4), (1, 4), (3, 4), (2, 8)])
@given(seed=st.integers(0, 999), groups=st.integers(1, 20), cycles=st.sampled_from([1, 5, 400]))
def test_groups_are_those_of_a_plain_loop(kept, of, seed, groups, cycles):
    weight, sums, spreads, norms = drawn(seed, 2, groups * of, coarse=seed % 2 == 0)
    scores = weight.abs() * norms
    keep = nm_mask(scores, kept, of)
    stop = Stop(cycles=cycles, threshold=0.1, same_sign=True)
    outcomes = []
    for backend in BACKENDS:
        with use_backend(backend):
            outcomes.append(swap_in_groups(weight, sums, spreads, scores, keep, of, stop))
    for r in range(2):

        def cheapest(usable, share, sign, grown, r=r):
            group = [j for j in usable if j // of == grown // of]
            return min(group, key=lambda j: (float(scores[r, j]), j)) if group else None

        row, loss = by_loop(weight[r], sums, spreads, keep[r].tolist(), cheapest, stop, skips=True)
        for found in outcomes:
            assert found.keep[r].tolist() == row
            assert found.after[r].item() == pytest.approx(loss, abs=1e-5)
            assert (found.keep[r].view(-1, of).sum(-1) == kept).all()


@pytest.mark.parametrize("backend", BACKENDS)
@given(seed=st.integers(0, 999), same_sign=st.booleans())
def test_counts_stay_and_the_reported_losses_are_those_of_the_masks(backend, seed, same_sign):
    weight, sums, spreads, norms = drawn(seed, 6, 70, coarse=False)
    draw = torch.Generator().manual_seed(seed)
    keep = torch.rand(6, 70, generator=draw) < torch.rand(6, 1, generator=draw)
    with use_backend(backend):
        stop = Stop(cycles=60, threshold=0.05, same_sign=same_sign)
        found = swap_in_rows(weight, sums, spreads, norms, keep, stop)
    shares = (weight * sums).double()
    assert torch.equal(found.keep.sum(1), keep.sum(1))
    torch.testing.assert_close(found.before, (shares * ~keep).sum(1))
    torch.testing.assert_close(found.after, (shares * ~found.keep).sum(1), rtol=1e-6, atol=1e-6)
    assert torch.equal((found.keep != keep).sum(1), 2 * found.swaps)
    if same_sign:
        assert (found.after.abs() <= found.before.abs()).all()
        assert (found.after * found.before >= 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_loss_below_the_threshold_changes_nothing(backend):
    weight, sums, spreads, norms = drawn(0, 5, 40, coarse=False)
    keep = keep_largest_per_row(weight.abs(), 20)
    with use_backend(backend):
        for threshold, cycles in ((math.inf, 50), (0.1, 0)):
            stop = Stop(cycles=cycles, threshold=threshold, same_sign=False)
            found = swap_in_rows(weight, sums, spreads, norms, keep, stop)
            assert torch.equal(found.keep, keep) and not found.swaps.any()
            assert torch.equal(found.before, found.after)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kept", [0, 8])
def test_all_kept_or_all_pruned(backend, kept):
    weight, sums, spreads, norms = drawn(1, 4, 8, coarse=False)
    keep = torch.full((4, 8), kept == 8)
    with use_backend(backend):
        stop = Stop(cycles=50, threshold=0.0, same_sign=False)
        found = swap_in_rows(weight, sums, spreads, norms, keep, stop)
    assert torch.equal(found.keep, keep) and not found.swaps.any()


def test_the_reference_works_in_bands(monkeypatch):
    from sparsecraft.kernels import mask_swaps_torch

    weight, sums, spreads, norms = drawn(2, 7, 30, coarse=False)
    keep = keep_largest_per_row(weight.abs(), 10)
    stop = Stop(cycles=50, threshold=0.1, same_sign=True)
    whole = mask_swaps_torch.swap_in_rows(weight, sums, spreads, norms, keep, stop)
    monkeypatch.setattr(mask_swaps_torch, "BAND", 60)
    banded = mask_swaps_torch.swap_in_rows(weight, sums, spreads, norms, keep, stop)
    assert all(torch.equal(vars(whole)[name], vars(banded)[name]) for name in vars(whole))


def test_threads_share_the_rows(monkeypatch):
    from sparsecraft.kernels import mask_swaps_numba

    weight, sums, spreads, norms = drawn(3, 9, 50, coarse=False)
    keep = keep_largest_per_row(weight.abs(), 25)
    stop = Stop(cycles=50, threshold=0.1, same_sign=False)
    alone = mask_swaps_numba.swap_in_rows(weight, sums, spreads, norms, keep, stop)
    monkeypatch.setattr(mask_swaps_numba, "PER_THREAD", 60)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    shared = mask_swaps_numba.swap_in_rows(weight, sums, spreads, norms, keep, stop)
    assert all(torch.equal(vars(alone)[name], vars(shared)[name]) for name in vars(alone))


def test_weights_that_are_not_contiguous():
    weight, sums, spreads, norms = drawn(4, 6, 20, coarse=False)
    keep = keep_largest_per_row(weight.abs(), 10)
    stop = Stop(cycles=50, threshold=0.1, same_sign=True)
    found = swap_in_rows(weight.T.contiguous().T, sums, spreads, norms, keep.T.contiguous().T, stop)
    expected = swap_in_rows(weight, sums, spreads, norms, keep, stop)
    assert torch.equal(found.keep, expected.keep)
