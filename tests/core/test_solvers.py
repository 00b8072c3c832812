"""Solvers of sparse codes: known minimisers, descent, stopping, gaps, least squares."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecraft.core.errors import InvalidValue, NonFinite, UnknownName
from sparsecraft.core.group_envelope import GroupEnvelope, KSupport
from sparsecraft.core.penalties import (
    CEL0,
    L0,
    L1,
    MCP,
    AbsTopK,
    GroupL2,
    GroupTopK,
    Log,
    Lq,
    SparseGroupL2,
    TopK,
)
from sparsecraft.core.solvers import (
    Decay,
    Stopping,
    conjugate_gradient,
    debias,
    fista,
    iht,
    ista,
    lasso_gap,
    lca,
    lipschitz,
    objective,
    omp,
)
from sparsecraft.core.solvers import lipschitz as lipschitz_function


def problem(seed=0, rows=7, atoms=20, width=12):
    stream = torch.Generator().manual_seed(seed)
    dictionary = torch.randn(atoms, width, generator=stream, dtype=torch.float64)
    dictionary = dictionary / dictionary.norm(dim=1, keepdim=True)
    return torch.randn(rows, width, generator=stream, dtype=torch.float64), dictionary


TIGHT = Stopping(tolerance=1e-9, max_steps=3000)
LONG = Stopping(tolerance=1e-9, max_steps=30_000)


@pytest.mark.parametrize("solver", [ista, fista, lca])
def test_orthogonal_atoms_need_one_prox(solver):
    x = torch.tensor([[3.0, -0.5, 1.2]])
    found = solver(x, torch.eye(3), L1(strength=1.0))
    assert torch.allclose(found.codes, torch.tensor([[2.0, 0.0, 0.2]]))
    assert bool(found.settled.all())


@pytest.mark.parametrize("penalty", [L1(strength=0.1), L0(strength=0.05), CEL0(strength=0.05),
                                     Lq(strength=0.1), Log(strength=0.1), MCP(strength=0.2)],
                         ids=str)  # fmt: skip
def test_the_objective_never_rises(penalty):
    x, dictionary = problem()
    values = [
        float(objective(x, dictionary, ista(
            x, dictionary, penalty, step="auto",
            stopping=Stopping(tolerance=1e-300, max_steps=steps)).codes, penalty))
        for steps in range(1, 25)
    ]  # fmt: skip
    assert all(after <= before + 1e-12 for before, after in pairwise(values))
    assert values[-1] < values[0]


@pytest.mark.parametrize("atoms", [10, 30])
def test_ista_and_fista_agree_where_the_minimum_is_one(atoms):
    x, dictionary = problem(atoms=atoms)
    stopping = Stopping(tolerance=1e-11, max_steps=4000)
    slow = ista(x, dictionary, L1(strength=0.5), stopping=stopping)
    fast = fista(x, dictionary, L1(strength=0.5), stopping=stopping)
    assert bool((slow.settled & fast.settled).all())
    assert torch.allclose(slow.codes @ dictionary, fast.codes @ dictionary, atol=1e-8)
    assert fast.steps.sum() < slow.steps.sum()
    assert float(lasso_gap(x, dictionary, fast.codes, 0.5).max()) < 1e-9


def test_momentum_takes_no_longer_step_than_it_can():
    x, dictionary = problem(atoms=30)
    curvature = lipschitz(dictionary)
    with pytest.raises(InvalidValue) as caught:
        fista(x, dictionary, L1(strength=0.1), step=1.9 / curvature)
    assert f"at most 1 / ||dictionary||^2 = {1 / curvature:.4g}" in str(caught.value)
    assert f'"auto" takes {1 / curvature:.4g}' in str(caught.value)
    # The bound as another routine computes it is the bound.
    longest = 1 / float(torch.linalg.matrix_norm(dictionary, 2)) ** 2
    found = fista(x, dictionary, L1(strength=0.1), step=longest, stopping=TIGHT)
    plain = ista(x, dictionary, L1(strength=0.1), step=1.9 / curvature, stopping=LONG)
    assert bool(found.settled.all())
    for each in (found, plain):
        assert float(lasso_gap(x, dictionary, each.codes, 0.1).max()) < 1e-6


@pytest.mark.parametrize("solver", [ista, fista, lca])
@pytest.mark.parametrize("penalty", [AbsTopK(k=3, scope="batch"), TopK(k=2, scope="feature"),
                                     GroupTopK(k=4), GroupEnvelope(k=4), KSupport(k=9)],
                         ids=lambda p: type(p).__name__)  # fmt: skip
def test_penalties_that_couple_rows_stop_whole_batches(solver, penalty):
    x, dictionary = problem()
    with pytest.raises(InvalidValue, match='give measure="batch"'):
        solver(x, dictionary, penalty, stopping=Stopping(tolerance=1e-2))
    found = solver(x, dictionary, penalty, stopping=Stopping(tolerance=1e-2, measure="batch"))
    assert len(set(found.steps.tolist())) == 1
    assert math.isfinite(float(penalty.value(found.codes)))  # within the budget
    assert int(found.codes.count_nonzero()) > 0


@pytest.mark.parametrize("penalty", [GroupL2(strength=0.2), SparseGroupL2(strength=0.2)], ids=str)
def test_groups_that_are_counted_one_by_one_do_not_couple_rows(penalty):
    x, dictionary = problem()
    x = x * torch.linspace(0.2, 3, len(x), dtype=x.dtype)[:, None]
    together = ista(x, dictionary, penalty)
    assert len(set(together.steps.tolist())) > 1
    for row in range(len(x)):
        alone = ista(x[row : row + 1], dictionary, penalty)
        assert torch.allclose(alone.codes[0], together.codes[row], atol=1e-12)


@pytest.mark.parametrize("atoms", [10, 30])
def test_neurons_that_compete_rest_at_the_lassos_minimum(atoms):
    x, dictionary = problem(atoms=atoms)
    dictionary = dictionary * torch.linspace(0.3, 2, atoms, dtype=x.dtype)[:, None]
    found = lca(x, dictionary, L1(strength=0.4), stopping=LONG)
    assert bool(found.settled.all())
    assert float(lasso_gap(x, dictionary, found.codes, 0.4).max()) < 1e-6
    again = lca(x, dictionary, L1(strength=0.4), start=found.codes,
                stopping=Stopping(tolerance=1e-6))  # fmt: skip
    assert int(again.steps.max()) == 1


def test_potentials_follow_the_equation_of_lca():
    x, dictionary = problem()
    step, penalty = 0.1, L1(strength=0.2)
    potentials = torch.zeros(7, 20, dtype=torch.float64)
    inhibition = dictionary @ dictionary.T - torch.eye(20)
    for _ in range(3):
        codes = penalty.prox(potentials, 1.0)
        change = x @ dictionary.T - potentials - codes @ inhibition
        potentials = potentials + step * change
    found = lca(x, dictionary, penalty, step=step, stopping=Stopping(tolerance=1e-9, max_steps=3))
    assert torch.allclose(found.codes, penalty.prox(potentials, 1.0), atol=1e-14)
    assert int(found.codes.count_nonzero()) > 0
    assert not bool(found.settled.any())


def test_neurons_below_their_threshold_have_not_settled_yet():
    # For many steps no neuron is active, while the potentials still rise.
    found = lca(torch.tensor([[3.0]]), torch.eye(1), L1(strength=1.0), step=0.01,
                stopping=Stopping(tolerance=1e-6))  # fmt: skip
    assert float(found.codes) == pytest.approx(2.0, abs=1e-3)


def test_neurons_with_faint_atoms_leak_no_faster_than_they_can():
    faint = torch.full((1, 1), 0.1)
    with pytest.raises(InvalidValue, match=r"at most 2 / max\(\|\|dictionary\|\|\^2, 1\) = 2,"):
        lca(torch.ones(1, 1), faint, L1(), step=3.0)
    found = lca(torch.tensor([[30.0]]), faint, L1(strength=1.0), stopping=Stopping(tolerance=1e-6))
    assert float(found.codes) == pytest.approx(200.0, rel=1e-2)  # (0.1 * 30 - 1) / 0.01


def test_pursuit_takes_the_same_atoms_as_scikit_learns():
    from sklearn.linear_model import orthogonal_mp

    x, dictionary = problem(rows=40, atoms=30)
    norms = torch.linspace(0.2, 3, 30, dtype=x.dtype)[:, None]
    found = omp(x, dictionary * norms, k=5)
    theirs = torch.from_numpy(orthogonal_mp(dictionary.T.numpy(), x.T.numpy(), n_nonzero_coefs=5)).T
    assert torch.equal(found.codes != 0, theirs != 0)
    assert torch.allclose(found.codes * norms.T, theirs, atol=1e-10)
    assert found.steps.tolist() == [5] * 40
    assert bool(found.settled.all())


def test_pursuit_ends_where_nothing_is_left():
    dictionary = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    x = torch.tensor([[3.0, 0.0, 0.0], [3.0, -4.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    found = omp(x, dictionary, k=4)
    assert found.codes[0].tolist() == [3.0, 0.0, 0.0, 0.0]
    assert torch.allclose(found.codes[1] @ dictionary, x[1])
    assert found.codes[2:].tolist() == [[0.0] * 4] * 2
    assert found.steps.tolist() == [1, 2, 0, 0]
    twice = omp(x[:1], torch.cat([dictionary, dictionary]), k=3)
    assert twice.steps.tolist() == [1]


@settings(max_examples=15)
@given(seed=st.integers(0, 30), strength=st.floats(0.05, 1.0))
def test_the_gap_bounds_what_is_lost(seed, strength):
    x, dictionary = problem(seed, rows=3)
    rough = ista(x, dictionary, L1(strength=strength), stopping=Stopping(max_steps=5)).codes
    best = fista(x, dictionary, L1(strength=strength), stopping=TIGHT).codes
    for row in range(3):
        lost = objective(x[row : row + 1], dictionary, rough[row : row + 1], L1(strength=strength))
        lost -= objective(x[row : row + 1], dictionary, best[row : row + 1], L1(strength=strength))
        assert float(lost) <= float(lasso_gap(x, dictionary, rough, strength)[row]) + 1e-9


def test_minimisers_of_cel0_are_zero_or_beyond_its_reach():
    x, dictionary = problem()
    norms = torch.linspace(0.5, 2, 20, dtype=torch.float64)
    dictionary = dictionary * norms[:, None]
    penalty = CEL0(strength=0.05).for_columns(norms)
    found = fista(x, dictionary, penalty, stopping=TIGHT)
    size = found.codes.abs()
    assert bool(((size == 0) | (size >= math.sqrt(0.1) / norms - 1e-6)).all())
    assert bool((size > 0).any())


@pytest.mark.parametrize("non_negative", [False, True])
def test_iht_finds_a_planted_code(non_negative):
    _, dictionary = problem(atoms=20, width=16)
    planted = torch.zeros(2, 20, dtype=torch.float64)
    planted[0, [3, 7]] = torch.tensor([2.0, 1.5], dtype=torch.float64)
    planted[1, [1]] = 1.0 if non_negative else -1.0
    found = iht(planted @ dictionary, dictionary, k=2, non_negative=non_negative, stopping=TIGHT)
    assert int((found.codes != 0).sum(1).max()) <= 2
    assert torch.allclose(found.codes, planted, atol=1e-6)


def test_a_row_is_solved_as_if_it_were_alone():
    x, dictionary = problem()
    together = fista(x, dictionary, Lq(strength=0.1))
    for row in range(len(x)):
        alone = fista(x[row : row + 1], dictionary, Lq(strength=0.1))
        assert int(alone.steps) == int(together.steps[row])
        assert torch.allclose(alone.codes[0], together.codes[row], atol=1e-12)
    assert len(set(together.steps.tolist())) > 1


def test_the_batch_criterion_stops_all_rows_at_once():
    x, dictionary = problem()
    found = ista(x, dictionary, L1(strength=0.1),
                 stopping=Stopping(tolerance=1e-2, measure="batch"))  # fmt: skip
    steps = int(found.steps[0])
    assert found.steps.tolist() == [steps] * len(x)
    states = [
        ista(x, dictionary, L1(strength=0.1),
             stopping=Stopping(tolerance=1e-300, max_steps=t)).codes
        for t in (steps - 2, steps - 1, steps)
    ]  # fmt: skip
    change = [
        float(torch.linalg.matrix_norm(b - a, 2) / (1e-2 + torch.linalg.matrix_norm(a, 2)))
        for a, b in pairwise(states)
    ]
    assert change[1] < 1e-2 <= change[0]


def test_rows_that_run_out_of_steps_are_told():
    x, dictionary = problem()
    found = ista(x, dictionary, L1(strength=0.01), stopping=Stopping(max_steps=2))
    assert not bool(found.settled.any())
    assert found.steps.tolist() == [2] * len(x)
    assert bool((found.codes != 0).any())


def test_hard_thresholding_stays_at_zero_where_no_atom_correlates_enough():
    x, dictionary = problem()
    found = ista(1e-3 * x, dictionary, L0(strength=1.0))
    assert int(found.codes.count_nonzero()) == 0
    assert bool(found.settled.all())


def test_a_start_is_gone_on_from():
    x, dictionary = problem()
    first = fista(x, dictionary, L1(strength=0.2), stopping=TIGHT).codes
    again = fista(x, dictionary, L1(strength=0.2), start=first, stopping=Stopping(tolerance=1e-6))
    assert int(again.steps.max()) == 1


def test_rates_fall_as_in_the_paper():
    assert Decay(first=0.05)(1000) == pytest.approx(0.05 / 2)
    x, dictionary = problem()
    one = Stopping(tolerance=1e-300, max_steps=2)
    decayed = ista(x, dictionary, L1(strength=0.1), step=Decay(first=0.05), stopping=one).codes
    first = L1(strength=0.1).prox(0.05 * x @ dictionary.T, 0.05)
    rate = Decay(first=0.05)(1)
    second = first + rate * (x - first @ dictionary) @ dictionary.T
    assert torch.allclose(decayed, L1(strength=0.1).prox(second, 0.05), atol=1e-14)
    falling = Decay(first=0.05, thresholds=True)
    followed = ista(x, dictionary, L1(strength=0.1), step=falling, stopping=one).codes
    assert torch.allclose(followed, L1(strength=0.1).prox(second, rate), atol=1e-14)
    assert not torch.allclose(followed, decayed, atol=1e-6)


def test_only_thresholds_that_fall_with_the_rate_leave_the_minimum_where_it_is():
    """min 1/2 (3 - r)^2 + |r| is at 2; a threshold that stays too great pulls below it."""
    x, one, stopping = torch.tensor([[3.0]]), torch.eye(1), Stopping(tolerance=1e-9, max_steps=2000)
    found = {
        kept: float(ista(x, one, L1(strength=1.0), step=step, stopping=stopping).codes)
        for kept, step in ((k, Decay(first=0.5, thresholds=k)) for k in (True, False))
    }
    assert found[True] == pytest.approx(2, abs=1e-4) and found[False] < 1.9


def test_lipschitz_is_the_squared_spectral_norm(monkeypatch):
    _, dictionary = problem(atoms=30)
    exact = float(torch.linalg.matrix_norm(dictionary, 2)) ** 2
    assert lipschitz(dictionary) == pytest.approx(exact)
    module = __import__("sys").modules[lipschitz_function.__module__]
    monkeypatch.setattr(module, "LARGEST_EXACT", 0)
    assert exact <= lipschitz(dictionary) <= 1.03 * exact
    assert lipschitz(torch.zeros(2, 3)) > 0


def test_conjugate_gradient_solves_each_row_with_its_own_matrix():
    stream = torch.Generator().manual_seed(1)
    roots = torch.randn(4, 6, 6, generator=stream, dtype=torch.float64)
    matrices = roots @ roots.mT + torch.eye(6)
    target = torch.randn(4, 6, generator=stream, dtype=torch.float64)
    found, settled = conjugate_gradient(
        lambda v: (matrices @ v[..., None])[..., 0], target, tolerance=1e-12, max_steps=40
    )
    assert bool(settled.all())
    assert torch.allclose(found, torch.linalg.solve(matrices, target), atol=1e-9)
    _, settled = conjugate_gradient(lambda v: (matrices @ v[..., None])[..., 0], target,
                                    tolerance=1e-12, max_steps=1)  # fmt: skip
    assert not bool(settled.any())


def test_debiasing_is_least_squares_on_the_support():
    x, dictionary = problem()
    codes = ista(x, dictionary, L1(strength=0.4)).codes
    again, settled = debias(x, dictionary, codes, tolerance=1e-12)
    assert bool(settled.all())
    assert torch.equal(again != 0, codes != 0)
    for row in range(len(x)):
        support = codes[row] != 0
        best = torch.linalg.lstsq(dictionary[support].T, x[row][:, None]).solution[:, 0]
        assert torch.allclose(again[row, support], best, atol=1e-8)


def test_debiasing_a_code_without_entries_leaves_it():
    again, settled = debias(torch.ones(1, 2), torch.eye(2), torch.zeros(1, 2))
    assert again.tolist() == [[0.0, 0.0]]
    assert bool(settled.all())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, d: ista(x, d, L1(), step=0.0), InvalidValue, "must be above 0 and at most"),
        (lambda x, d: ista(x, d, L1(), step=-1), InvalidValue, "step=-1 is not allowed"),
        (lambda x, d: ista(x, d, L1(), step=99.0), InvalidValue, "or the steps diverge"),
        (lambda x, d: ista(x, d, L1(), step="best"), UnknownName, "Unknown step 'best'"),
        (lambda x, d: ista(x[:, :3], d, L1()), InvalidValue, "do not fit a dictionary"),
        (lambda x, d: ista(x.float(), d, L1()), InvalidValue, "must have one floating type"),
        (lambda x, d: ista(x * math.nan, d, L1()), NonFinite, "7 of 7 rows have NaN"),
        (lambda x, d: ista(x, d * math.inf, L1()), NonFinite, "the dictionary has NaN"),
        (lambda x, d: ista(x, d, L1(), start=x), InvalidValue, "it must be (7, 20)"),
        (lambda x, d: ista(x, d, L1(), step=math.nan), InvalidValue, "step=nan is not allowed"),
        (lambda x, d: omp(x, d, k=21), InvalidValue, "the dictionary has 20 atoms"),
        (lambda x, d: omp(x, d, k=0), InvalidValue, "k=0 is not allowed"),
        (lambda x, d: omp(x * math.nan, d, k=1), NonFinite, "7 of 7 rows have NaN"),
        (lambda x, d: iht(x, d, k=21), InvalidValue, "k=21 exceeds the 20 entries of a row"),
        (lambda x, d: debias(x, d, x), InvalidValue, "7 rows and 20 components"),
        (lambda x, d: lasso_gap(x, d, x @ d.T, -1), InvalidValue, "strength=-1"),
        (lambda x, d: Stopping(tolerance=0), InvalidValue, "tolerance=0 is not allowed"),
        (lambda x, d: Stopping(max_steps=0), InvalidValue, "max_steps=0 is not allowed"),
        (lambda x, d: Stopping(measure="rows"), UnknownName, "Did you mean 'row'"),
    ],
)
def test_what_is_not_allowed_is_said(call, error, message):
    with pytest.raises(error) as caught:
        call(*problem())
    assert message in str(caught.value)


def test_a_selection_is_a_penalty_like_any_other():
    x, dictionary = problem()
    found = ista(x, dictionary, AbsTopK(k=3), stopping=TIGHT)
    assert (found.codes != 0).sum(1).tolist() == [3] * len(x)
