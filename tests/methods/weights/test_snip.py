import pytest
import torch

from sparsecraft.core.errors import MissingStatistic, NonFinite
from sparsecraft.core.mask import count
from sparsecraft.core.patterns import NM
from sparsecraft.methods.weights.snip import SNIP


def test_sensitivity_is_the_slope_of_a_switch(context):
    """|dL/dc| at c = 1, by finite differences, up to the common factor."""
    weights = context.weights()
    found = SNIP().sensitivities(weights, context)
    slopes = {}
    step = 1e-6
    for name, weight in weights.items():
        slopes[name] = torch.zeros_like(weight)
        for place in range(weight.numel()):
            at = {key: value.clone() for key, value in weights.items()}
            losses = []
            for factor in (1 + step, 1 - step):
                at[name].view(-1)[place] = weight.view(-1)[place] * factor
                losses.append(context.loss(at, context.data[0]))
            slopes[name].view(-1)[place] = (losses[0] - losses[1]).abs() / (2 * step)
    total = sum(slope.sum() for slope in slopes.values())
    for name, slope in slopes.items():
        torch.testing.assert_close(found[name], slope / total, rtol=1e-5, atol=1e-8)
    assert sum(float(s.sum()) for s in found.values()) == pytest.approx(1.0)


def test_the_most_sensitive_stay_over_all_layers(context):
    weights = context.weights()
    method = SNIP(sparsity=0.8)
    pruned = method.prune(weights, context)
    found = method.sensitivities(weights, context)
    kept = torch.cat([found[n][p.mask] for n, p in pruned.items()])
    gone = torch.cat([found[n][~p.mask] for n, p in pruned.items()])
    assert len(kept) == count(72, 0.2) and kept.min() >= gone.max()
    assert all(torch.equal(p.weight, weights[n] * p.mask) for n, p in pruned.items())


def test_several_batches_add_up(make_context, make_batch):
    both = [make_batch(seed=1), make_batch(seed=2)]
    whole = {key: torch.cat([each[key] for each in both]) for key in both[0]}
    apart, joined = make_context(data=both), make_context(data=[whole])
    weights = apart.weights()
    for name, found in SNIP().sensitivities(weights, apart).items():
        torch.testing.assert_close(found, SNIP().sensitivities(weights, joined)[name])


def test_reinitialised_scores_do_not_see_the_weights(context):
    method = SNIP(reinitialise=True, sparsity=0.5)
    weights = context.weights()
    scaled = {name: 7 * weight for name, weight in weights.items()}
    first, second = method.prune(weights, context), method.prune(scaled, context)
    assert all(torch.equal(first[n].mask, second[n].mask) for n in weights)
    assert torch.equal(second["first"].weight, scaled["first"] * first["first"].mask)
    plain = SNIP(sparsity=0.5).prune(weights, context)
    assert any(not torch.equal(first[n].mask, plain[n].mask) for n in weights)


def test_reinitialised_weights_are_xavier_normal(make_context, make_batch):
    drawn = {}

    class Watching(make_context):
        def loss(self, weights, batch, *, temperature=1.0):
            drawn.update(weights)
            return super().loss(weights, batch, temperature=temperature)

    context = Watching(data=[make_batch()], widths=(6, 3000, 3))
    SNIP(reinitialise=True).sensitivities(context.weights(), context)
    assert float(drawn["first"].detach().std()) == pytest.approx((2 / 3006) ** 0.5, rel=0.03)
    assert float(drawn["second"].detach().std()) == pytest.approx((2 / 3003) ** 0.5, rel=0.03)


def test_reinitialised_kernels_count_in_both_fans(make_context, make_batch):
    seen = {}

    class Kernels(make_context):
        def loss(self, weights, batch, *, temperature=1.0):
            seen.update(weights)
            return sum(weight.sum() for weight in weights.values())

    context = Kernels(data=[make_batch()])
    context.shapes = {"conv": (64, 32, 3, 3)}
    weight = torch.zeros(64, 288, dtype=torch.float64)
    SNIP(reinitialise=True).sensitivities({"conv": weight}, context)
    assert float(seen["conv"].detach().std()) == pytest.approx((2 / (96 * 9)) ** 0.5, rel=0.03)


def test_groups(context):
    pruned = SNIP(pattern=NM(1, 2)).prune(context.weights(), context)
    assert all((p.mask.view(-1, 2).sum(1) == 1).all() for p in pruned.values())


def test_the_weights_stay_as_they_were(context):
    weights = context.weights()
    before = {name: weight.clone() for name, weight in weights.items()}
    SNIP(reinitialise=True).prune(weights, context)
    assert all(torch.equal(weights[n], before[n]) for n in weights)
    assert not any(weight.requires_grad for weight in weights.values())


def test_it_needs_batches(make_context):
    context = make_context()
    assert SNIP.needs_batches
    with pytest.raises(MissingStatistic):
        SNIP().prune(context.weights(), context)


def test_a_gradient_that_is_not_finite_names_its_layer(make_context, make_batch):
    bad = make_batch()
    bad["x"][0, 0] = float("inf")
    context = make_context(data=[bad])
    with pytest.raises(NonFinite, match="first: the gradient"):
        SNIP().prune(context.weights(), context)
