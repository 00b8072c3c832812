import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.core.errors import InvalidValue, NonFinite, UnknownName
from sparsecraft.core.group_envelope import GroupEnvelope, KSupport, batched_factors
from sparsecraft.core.penalties import norms_and_sizes

M, SIZE = 8, 3
WEIGHTS = ["one", "size", "inverse_size", "sqrt_size", torch.linspace(0.3, 2.0, M).double()]
weighted = pytest.mark.parametrize("weights", WEIGHTS, ids=[*WEIGHTS[:4], "given"])
seeds = st.integers(0, 10**6)
counts = st.integers(1, M)
steps = st.sampled_from([0.05, 0.5, 2.0])


def groups(seed, zeros=0.2):
    noise = torch.Generator().manual_seed(seed)
    x = torch.randn(M, SIZE, generator=noise, dtype=torch.float64)
    return x * (torch.rand(M, 1, generator=noise) >= zeros)


def inner(x, y):
    return float((x * y).sum())


def d_of(weights):
    if isinstance(weights, torch.Tensor):
        return weights
    power = {"one": 0.0, "size": 1.0, "inverse_size": -1.0, "sqrt_size": 0.5}[weights]
    return torch.full((M,), float(SIZE) ** power, dtype=torch.float64)


def test_by_hand():
    norms = torch.tensor([3.0, 2.0, 1.0])
    envelope = GroupEnvelope(k=2)
    # eta = 1/3: u = (1, 2/3, 1/3), and 1/2 (9 + 4 * 3/2 + 1 * 3) = 9.
    assert envelope.dual_weights(norms.double()).tolist() == pytest.approx([1, 2 / 3, 1 / 3])
    assert float(envelope.value(norms)) == pytest.approx(9.0)
    assert envelope.grad(norms).tolist() == pytest.approx([3.0, 3.0, 3.0])
    assert float(envelope.conjugate(norms)) == 6.5
    # Half the squared group lasso, and half the squared norm.
    assert float(GroupEnvelope(k=1).value(norms)) == pytest.approx(18.0)
    assert float(GroupEnvelope(k=3).value(norms)) == pytest.approx(7.0)


@weighted
@given(seed=seeds, k=counts)
def test_the_value_is_the_k_support_norm_of_argyriou(weights, seed, k):
    """The closed form with the sorted norms and the one r that fits."""
    x = groups(seed)
    a = sorted((d_of(weights).sqrt() * x.norm(dim=1)).tolist(), reverse=True)
    padded = [math.inf, *a]
    closed = None
    if sum(each > 0 for each in a) <= k:
        closed = sum(each**2 for each in a) / 2
    else:
        for r in range(k):
            mean = sum(a[k - r - 1 :]) / (r + 1)
            if padded[k - r - 1] > mean >= padded[k - r]:
                closed = (sum(each**2 for each in a[: k - r - 1]) + (r + 1) * mean**2) / 2
    assert float(GroupEnvelope(k=k, weights=weights).value(x)) == pytest.approx(closed, rel=1e-9)


@weighted
@given(seed=seeds, k=counts)
def test_the_conjugate_is_the_best_of_all_choices_of_k_groups(weights, seed, k):
    y = groups(seed)
    energies = (y.square().sum(1) / d_of(weights)).tolist()
    best = max(sum(chosen) for chosen in itertools.combinations(energies, k)) / 2
    assert float(GroupEnvelope(k=k, weights=weights).conjugate(y)) == pytest.approx(best)


@weighted
@given(seed=seeds, k=counts, step=steps)
def test_value_and_conjugate_meet_at_the_prox(weights, seed, k, step):
    """Fenchel-Young with q = (t - v) / step is an equality exactly where v is the prox."""
    t, envelope = groups(seed), GroupEnvelope(k=k, weights=weights)
    v = envelope.prox(t, step)
    q = (t - v) / step
    both = float(envelope.value(v) + envelope.conjugate(q))
    assert both == pytest.approx(inner(v, q), rel=1e-9, abs=1e-12)


@weighted
@given(seed=seeds, k=counts)
def test_value_and_conjugate_meet_at_the_gradient(weights, seed, k):
    x, envelope = groups(seed), GroupEnvelope(k=k, weights=weights)
    y = envelope.grad(x)
    both = float(envelope.value(x) + envelope.conjugate(y))
    assert both == pytest.approx(inner(x, y), rel=1e-9, abs=1e-12)
    assert inner(x, y) == pytest.approx(2 * float(envelope.value(x)))  # 2-homogeneous


@given(seed=seeds, k=counts)
def test_the_gradient_is_that_of_differences(seed, k):
    x, envelope = groups(seed, zeros=0.0), GroupEnvelope(k=k)
    step = 1e-6
    for place in ((0, 0), (3, 2)):
        move = torch.zeros_like(x)
        move[place] = step
        slope = float(envelope.value(x + move) - envelope.value(x - move)) / (2 * step)
        assert slope == pytest.approx(float(envelope.grad(x)[place]), abs=1e-5)


@weighted
@given(seed=seeds, k=counts, step=steps)
def test_moreau(weights, seed, k, step):
    """t = prox of step * R plus step times the prox of R* / step; the latter by its own optimum."""
    t, envelope = groups(seed), GroupEnvelope(k=k, weights=weights)
    q = (t - envelope.prox(t, step)) / step

    def cost(z):
        return float((z - t / step).square().sum() / 2 + envelope.conjugate(z) / step)

    best = cost(q)
    noise = torch.Generator().manual_seed(seed)
    for size in (1e-3, 0.1, 1.0):
        assert cost(q + size * torch.randn(M, SIZE, generator=noise).double()) >= best - 1e-9


@weighted
@given(seed=seeds, step=steps)
def test_all_groups_give_weight_decay(weights, seed, step):
    t = groups(seed)
    expected = t / (1 + step * d_of(weights))[:, None]
    assert torch.allclose(GroupEnvelope(k=M, weights=weights).prox(t, step), expected)


@given(seed=seeds, step=steps)
def test_one_group_gives_the_squared_group_lasso(seed, step):
    """Its prox is the block threshold by step * S, where S is the sum of norms that are left."""
    t = groups(seed, zeros=0.0)
    v = GroupEnvelope(k=1).prox(t, step)
    left = v.norm(dim=1)
    threshold = step * left.sum()
    assert torch.allclose((t.norm(dim=1) - threshold).clamp(min=0), left, atol=1e-9)


@weighted
@given(seed=seeds, k=counts)
def test_a_great_strength_keeps_exactly_k_groups(weights, seed, k):
    """Those of largest ||t_j|| / sqrt(d_j), shrunk by 1 / (1 + step * d_j)."""
    t, step = groups(seed, zeros=0.0), 1e9
    v = GroupEnvelope(k=k, weights=weights).prox(t, step)
    d = d_of(weights)
    kept = (t.norm(dim=1) / d.sqrt()).topk(k).indices
    expected = torch.zeros_like(t)
    expected[kept] = t[kept] / (1 + step * d[kept])[:, None]
    assert torch.allclose(v, expected, rtol=1e-6, atol=0)
    assert int((v.norm(dim=1) > 0).sum()) == k


@weighted
@given(seed=seeds, k=counts, step=steps)
def test_between_k_and_all_groups_stay_and_a_small_step_changes_little(weights, seed, k, step):
    t, envelope = groups(seed), GroupEnvelope(k=k, weights=weights)
    nonzero = int((t.norm(dim=1) > 0).sum())
    active = int((envelope.prox(t, step).norm(dim=1) > 0).sum())
    assert min(k, nonzero) <= active <= nonzero
    assert torch.allclose(envelope.prox(t, 1e-12), t)


@given(seed=seeds, step=steps)
def test_monotone_in_k(seed, step):
    x = groups(seed)
    values = [float(GroupEnvelope(k=k).value(x)) for k in range(1, M + 1)]
    assert all(one >= other - 1e-12 for one, other in itertools.pairwise(values))
    assert values[-1] == pytest.approx(float(x.square().sum()) / 2)
    norms = [float(GroupEnvelope(k=k).prox(x, step).norm()) for k in range(1, M + 1)]
    assert all(one <= other + 1e-9 for one, other in itertools.pairwise(norms))


@given(seed=seeds, k=counts, step=steps)
def test_the_order_of_groups_does_not_matter(seed, k, step):
    x, envelope = groups(seed), GroupEnvelope(k=k)
    order = torch.randperm(M, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(envelope.prox(x[order], step), envelope.prox(x, step)[order])
    assert float(envelope.value(x[order])) == pytest.approx(float(envelope.value(x)))


@weighted
@pytest.mark.parametrize("k", [3, 4, M])
def test_no_more_than_k_groups_decay_alone(weights, k):
    x = groups(0, zeros=0.0)
    x[3:] = 0
    envelope = GroupEnvelope(k=k, weights=weights)
    u = envelope.dual_weights(*norms_and_sizes(x)).tolist()
    assert u == pytest.approx([1.0] * 3 + [0.0] * 5)
    expected = x / (1 + 0.5 * d_of(weights))[:, None]
    assert torch.allclose(envelope.prox(x, 0.5), expected)
    assert float(envelope.value(x)) == pytest.approx(
        float((d_of(weights) * x.square().sum(1)).sum()) / 2
    )


@pytest.mark.parametrize("k", [1, 2, 3])
def test_ties_share_what_is_kept(k):
    equal = torch.full((4, 1), 2.0, dtype=torch.float64)
    envelope = GroupEnvelope(k=k)
    assert envelope.dual_weights(equal[:, 0]).tolist() == pytest.approx([k / 4] * 4)
    factors = envelope.factors(equal[:, 0], 0.5)
    assert factors.tolist() == pytest.approx([(k / 4) / (0.5 + k / 4)] * 4)


def test_many_float32_groups_lose_no_digits():
    """Sums over 1e5 groups are formed in float64, whatever the type of the tensor."""
    t = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    envelope = GroupEnvelope(k=9_000)
    u = envelope.prox_weights(norms_and_sizes(t)[0], 0.3)
    assert u.dtype == torch.float64
    assert float(u.sum()) == pytest.approx(9_000, abs=1e-6)
    assert torch.allclose(envelope.prox(t, 0.3), envelope.prox(t.double(), 0.3).float())


def test_strength_and_step_make_one_product():
    t = groups(1)
    one = GroupEnvelope(k=3, strength=0.2).prox(t, 0.5)
    assert torch.allclose(one, GroupEnvelope(k=3).prox(t, 0.1))
    assert float(GroupEnvelope(k=3, strength=0.2).value(t)) == pytest.approx(
        0.2 * float(GroupEnvelope(k=3).value(t))
    )
    nothing = GroupEnvelope(k=3, strength=0.0)
    assert torch.allclose(nothing.prox(t, 1.0), t)
    assert float(nothing.conjugate(t)) == math.inf
    assert float(nothing.conjugate(0 * t)) == 0.0


def test_k_support_is_the_envelope_of_entries_of_any_shape():
    x = groups(2)
    one, other = KSupport(k=4), GroupEnvelope(k=4)
    assert float(one.value(x)) == pytest.approx(float(other.value(x.reshape(-1))))
    assert torch.equal(one.prox(x, 0.2).reshape(-1), other.prox(x.reshape(-1), 0.2))


def test_families_in_one_batch_give_what_each_gives_alone():
    noise = torch.Generator().manual_seed(0)
    norms = [torch.rand(m, generator=noise).double() for m in (5, 40, 1, 12)]
    norms[3][2:] = 0  # fewer than its k are not zero
    sizes = [torch.full_like(each, 4.0) for each in norms]
    penalties = [
        GroupEnvelope(k=2),
        GroupEnvelope(k=11, strength=0.3, weights="size"),
        GroupEnvelope(k=1, weights="inverse_size"),
        GroupEnvelope(k=5),
    ]
    found = batched_factors(penalties, norms, 0.4, sizes)
    for factors, penalty, each, size in zip(found, penalties, norms, sizes, strict=True):
        assert torch.allclose(factors, penalty.factors(each, 0.4, size), atol=1e-12)


@pytest.mark.parametrize("k", [0, -2, 2.0, True])
def test_a_k_that_is_none_is_refused(k):
    with pytest.raises(InvalidValue, match=r"k=.*integer from 1"):
        GroupEnvelope(k=k)


def test_what_does_not_fit_is_refused():
    t = groups(0)
    with pytest.raises(InvalidValue, match=f"k=9.*from 1 to {M}, the number of groups"):
        GroupEnvelope(k=9).prox(t, 1.0)
    with pytest.raises(InvalidValue, match="k=9"):
        GroupEnvelope(k=9).conjugate(t)
    with pytest.raises(InvalidValue, match="must be positive and finite; the least is -1"):
        GroupEnvelope(k=1, weights=torch.tensor([1.0, -1.0]))
    with pytest.raises(InvalidValue, match="3 weights for 8 groups"):
        GroupEnvelope(k=1, weights=torch.ones(3)).value(t)
    with pytest.raises(UnknownName, match=r"'sizes'.*Did you mean.*'size'"):
        GroupEnvelope(k=1, weights="sizes")
    with pytest.raises(InvalidValue, match="strength=-1"):
        GroupEnvelope(k=1, strength=-1)
    with pytest.raises(InvalidValue, match=r"step=-0\.5"):
        GroupEnvelope(k=1).prox(t, -0.5)
    with pytest.raises(InvalidValue, match="needs the sizes"):
        GroupEnvelope(k=1, weights="size").factors(t.norm(dim=1), 1.0)
    with pytest.raises(NonFinite, match="groups hold NaN"):
        GroupEnvelope(k=1).prox(t * math.nan, 1.0)
    with pytest.raises(InvalidValue, match="int32"):
        GroupEnvelope(k=1).value(torch.ones(3, dtype=torch.int32))
