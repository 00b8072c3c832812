import pytest
import torch

from sparsecraft.core.errors import InvalidValue, MissingStatistic
from sparsecraft.core.mask import count
from sparsecraft.methods.weights.grasp import GraSP


def gradients(weights, context, batch, temperature):
    at = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    loss = context.loss(at, batch, temperature=temperature)
    return torch.autograd.grad(loss, list(at.values()))


def test_the_product_is_the_slope_of_the_gradient(context):
    """w * Hg by finite differences along g, both halves with the sum of their gradients."""
    weights = context.weights()
    whole = context.data[0]
    halves = [{k: v[:6] for k, v in whole.items()}, {k: v[6:] for k, v in whole.items()}]
    first = [gradients(weights, context, half, 2.0) for half in halves]
    total = [a + b for a, b in zip(*first, strict=True)]
    step = 1e-6
    raw = [torch.zeros_like(weight) for weight in weights.values()]
    for half in halves:
        ahead, behind = (
            gradients(
                {n: w + sign * step * g for (n, w), g in zip(weights.items(), total, strict=True)},
                context,
                half,
                2.0,
            )
            for sign in (1, -1)
        )
        for score, a, b, weight in zip(raw, ahead, behind, weights.values(), strict=True):
            score += weight * (a - b) / (2 * step)
    norm = abs(sum(score.sum() for score in raw)) + 1e-10
    found = GraSP(temperature=2.0).flows(weights, context)
    for score, name in zip(raw, weights, strict=True):
        torch.testing.assert_close(found[name], score / norm, rtol=1e-5, atol=1e-7)


def test_the_paper_removes_the_largest_of_minus_w_times_hg(context):
    weights = context.weights()
    method = GraSP(sparsity=0.8)
    pruned = method.prune(weights, context)
    papers = {name: -flow for name, flow in method.flows(weights, context).items()}
    kept = torch.cat([papers[n][p.mask] for n, p in pruned.items()])
    gone = torch.cat([papers[n][~p.mask] for n, p in pruned.items()])
    assert len(kept) == count(72, 0.2) and gone.min() >= kept.max()
    assert (gone < 0).any() and (gone > 0).any()


def test_the_temperature_is_that_of_the_paper():
    assert GraSP().temperature == 200.0


def test_odd_batches_and_values_that_are_not_tensors(make_context, make_batch):
    odd = {**make_batch(size=7), "task": "digits", "scale": torch.tensor(2.0)}
    context = make_context(data=[odd])
    pruned = GraSP().prune(context.weights(), context)
    assert sum(int(p.mask.sum()) for p in pruned.values()) == 36


@pytest.mark.parametrize("size", [0, 1])
def test_a_batch_too_small_for_two_halves(make_context, make_batch, size):
    context = make_context(data=[make_batch(size=size)])
    with pytest.raises(InvalidValue, match="at least 2"):
        GraSP().prune(context.weights(), context)


def test_a_batch_of_unequal_sizes(make_context, make_batch):
    context = make_context(data=[{**make_batch(size=4), "labels": torch.zeros(3).long()}])
    with pytest.raises(InvalidValue, match=r"the sizes are \[3, 4\]"):
        GraSP().prune(context.weights(), context)


def test_it_needs_batches(make_context):
    context = make_context()
    with pytest.raises(MissingStatistic):
        GraSP().prune(context.weights(), context)


def test_wrong_temperature():
    with pytest.raises(InvalidValue, match="temperature"):
        GraSP(temperature=0)


def test_the_weights_stay_as_they_were(context):
    weights = context.weights()
    before = {name: weight.clone() for name, weight in weights.items()}
    GraSP().prune(weights, context)
    assert all(torch.equal(weights[n], before[n]) for n in weights)
