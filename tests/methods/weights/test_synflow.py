from itertools import pairwise

import pytest
import torch

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.mask import count
from sparsecraft.core.patterns import NM, Block
from sparsecraft.methods.weights.magnitude import GlobalMagnitude
from sparsecraft.methods.weights.synflow import SynFlow


def reference(weights, density, rounds):
    """The paper's algorithm 1 for two matrices, with the gradients written out by hand."""
    first, second = weights["first"].abs(), weights["second"].abs()
    keep = torch.ones(first.numel() + second.numel(), dtype=torch.bool)
    for turn in range(1, rounds + 1):
        a = first * keep[: first.numel()].view_as(first)
        b = second * keep[first.numel() :].view_as(second)
        scores = torch.cat([(a * b.sum(0)[:, None]).flatten(), (b * a.sum(1)[None, :]).flatten()])
        scores[~keep] = -1
        kept = scores.argsort(descending=True, stable=True)
        keep = torch.zeros_like(keep)
        keep[kept[: count(keep.numel(), density ** (turn / rounds))]] = True
    return keep[: first.numel()].view_as(first), keep[first.numel() :].view_as(second)


@pytest.mark.parametrize("sparsity", [0.3, 0.8, 0.95])
@pytest.mark.parametrize("rounds", [1, 7, 100])
def test_against_the_algorithm_by_hand(make_context, sparsity, rounds):
    context = make_context()
    weights = context.weights()
    pruned = SynFlow(sparsity=sparsity, rounds=rounds).prune(weights, context)
    first, second = reference(weights, 1 - sparsity, rounds)
    assert torch.equal(pruned["first"].mask, first)
    assert torch.equal(pruned["second"].mask, second)
    assert context.flows == rounds


def test_signs_and_types_stay(make_context):
    context = make_context()
    weights = context.weights(torch.float32)
    pruned = SynFlow(sparsity=0.5).prune(weights, context)
    for name, weight in weights.items():
        assert pruned[name].weight.dtype == torch.float32
        assert torch.equal(pruned[name].weight, weight * pruned[name].mask)


def test_no_layer_collapses_where_global_magnitude_lets_one(make_context):
    context = make_context(widths=(6, 400, 3))
    weights = context.weights()
    weights["second"] = weights["second"] / 100
    at_most = 1 - 20 / (400 * 9)
    flowing = SynFlow(sparsity=at_most).prune(weights, context)
    assert all(p.mask.any() for p in flowing.values())
    left = {name: p.weight.abs() for name, p in flowing.items()}
    assert float(context.flow(left)) > 0
    magnitude = GlobalMagnitude(sparsity=at_most).prune(weights, context)
    assert not magnitude["second"].mask.any()


def test_what_is_gone_never_returns_where_scores_tie_at_zero(make_context):
    """After the first round no flow is left: every score is zero, kept or not."""
    alive = []

    class Cut(make_context):
        def flow(self, weights):
            alive.append(torch.cat([w.detach().flatten() != 0 for w in weights.values()]))
            return super().flow(weights) * (self.flows == 1)

    context = Cut()
    weights = context.weights()
    pruned = SynFlow(sparsity=0.75, rounds=4).prune(weights, context)
    alive.append(torch.cat([p.mask.flatten() for p in pruned.values()]))
    counts = [count(72, 0.25 ** (turn / 4)) for turn in range(5)]
    assert [int(each.sum()) for each in alive] == counts
    assert all((later <= earlier).all() for earlier, later in pairwise(alive))


def test_deep_products_do_not_overflow(make_context):
    context = make_context()
    weights = {name: w.float() * 1e30 for name, w in context.weights().items()}
    small = SynFlow(sparsity=0.9).prune(context.weights(), context)
    large = SynFlow(sparsity=0.9).prune(weights, context)
    assert all(torch.equal(small[n].mask, large[n].mask) for n in small)


@pytest.mark.parametrize("pattern", [NM(1, 2), Block(1, 2)], ids=str)
def test_patterns(make_context, pattern):
    context = make_context()
    pruned = SynFlow(pattern=pattern).prune(context.weights(), context)
    groups = torch.cat([p.mask.reshape(-1, 2).sum(1) for p in pruned.values()])
    assert int(groups.sum()) == 36
    assert set(groups.tolist()) == ({1} if isinstance(pattern, NM) else {0, 2})
    assert context.flows == (1 if isinstance(pattern, NM) else 100)


def test_it_needs_no_batches():
    assert not SynFlow.needs_batches


def test_wrong_rounds():
    with pytest.raises(InvalidValue, match="rounds=0"):
        SynFlow(rounds=0)
