import pytest
import torch

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.patterns import NM, Block
from sparsecraft.methods.weights.grasp import GraSP
from sparsecraft.methods.weights.magnitude import GlobalMagnitude, Magnitude
from sparsecraft.methods.weights.ratios import RandomRatios
from sparsecraft.methods.weights.snip import SNIP
from sparsecraft.methods.weights.synflow import SynFlow


@pytest.mark.parametrize("inner", [SNIP(reinitialise=True), GraSP(), SynFlow(), GlobalMagnitude()])
def test_counts_are_those_of_the_method_and_places_are_not(context, inner):
    weights = context.weights()
    drawn = RandomRatios(sparsity=0.7, ratios_of=inner).prune(weights, context)
    chosen = type(inner)(**{**vars(inner), "sparsity": 0.7}).prune(weights, context)
    for name in weights:
        assert int(drawn[name].mask.sum()) == max(1, int(chosen[name].mask.sum()))
        assert torch.equal(drawn[name].weight, weights[name] * drawn[name].mask)
    assert any(not torch.equal(drawn[n].mask, chosen[n].mask) for n in weights)


def test_the_seed_moves_the_places(make_context):
    weights = make_context().weights()
    method = RandomRatios(ratios_of=GlobalMagnitude())
    first, again, other = (
        method.prune(weights, make_context(seed=seed))["first"].mask for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.sum() == other.sum()


def test_a_layer_keeps_at_least_one(make_context):
    context = make_context()
    weights = context.weights()
    weights["second"] = weights["second"] * 1e-6
    drawn = RandomRatios(sparsity=0.9, ratios_of=GlobalMagnitude()).prune(weights, context)
    assert int(drawn["second"].mask.sum()) == 1


def test_blocks(context):
    method = RandomRatios(pattern=Block(1, 2), ratios_of=GlobalMagnitude(pattern=Block(1, 2)))
    pruned = method.prune(context.weights(), context)
    assert all(set(p.mask.view(-1, 2).sum(1).tolist()) <= {0, 2} for p in pruned.values())
    assert sum(int(p.mask.sum()) for p in pruned.values()) == 36


def test_it_needs_batches_where_the_method_does():
    assert RandomRatios().needs_batches and RandomRatios(ratios_of=GraSP()).needs_batches
    assert not RandomRatios(ratios_of=SynFlow()).needs_batches


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratios_of": Magnitude()}, "model-wide method such as"),
        ({"pattern": NM(2, 4)}, "no ratios to take"),
        ({"ratios_of": SNIP(sparsity=0.3)}, "give it once"),
        ({"sparsity": 0.5, "ratios_of": SNIP(sparsity=0.3)}, "give it once"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(InvalidValue, match=message):
        RandomRatios(**options)
