import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.core.errors import NonFinite
from sparsecraft.core.kinds import Layer
from sparsecraft.core.mask import count
from sparsecraft.core.patterns import NM, Block, Channels, Unstructured
from sparsecraft.methods.weights.magnitude import GlobalMagnitude, Magnitude

seeds = st.integers(0, 2**31)
WEIGHT = torch.tensor([[1.0, -4.0, 0.5, 2.0], [-3.0, 0.1, 6.0, -5.0]])


def tied(seed, *shape):
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize(
    ("pattern", "kept"),
    [
        (Unstructured(), [[0, 1, 0, 0], [1, 0, 1, 1]]),
        (Unstructured(per="row"), [[0, 1, 0, 1], [0, 0, 1, 1]]),
        (NM(2, 4), [[0, 1, 0, 1], [0, 0, 1, 1]]),
        (NM(1, 2), [[0, 1, 0, 1], [1, 0, 1, 0]]),
        (Block(1, 2), [[1, 1, 0, 0], [0, 0, 1, 1]]),
        (Channels("out"), [[0, 0, 0, 0], [1, 1, 1, 1]]),
        (Channels("in"), [[0, 0, 1, 1], [0, 0, 1, 1]]),
    ],
    ids=str,
)
def test_by_hand(pattern, kept):
    pruned = Magnitude(pattern=pattern).prune(WEIGHT, Layer(name="a", density=0.5))
    assert pruned.mask.int().tolist() == kept
    assert torch.equal(pruned.weight, WEIGHT.where(pruned.mask, torch.zeros(())))


@given(seeds, st.floats(0.01, 1))
def test_the_layer_says_how_many(seed, density):
    pruned = Magnitude(sparsity=0.5).prune(tied(seed, 5, 7), Layer(name="a", density=density))
    assert int(pruned.mask.sum()) == count(35, density)


@given(seeds, st.floats(0, 0.99))
def test_global_is_magnitude_of_everything_at_once(seed, sparsity):
    weights = {"a": tied(seed, 3, 4), "b": tied(seed + 1, 5, 4)}
    method = GlobalMagnitude(sparsity=sparsity)
    pruned = method.prune(weights, context=None)
    whole = Layer(name="all", density=method.density)
    together = Magnitude().prune(torch.cat(list(weights.values())), whole)
    assert torch.equal(torch.cat([p.mask for p in pruned.values()]), together.mask)
    assert torch.equal(torch.cat([p.weight for p in pruned.values()]), together.weight)


@pytest.mark.parametrize("pattern", [NM(2, 4), Block(1, 2), Unstructured(per="row")], ids=str)
def test_global_with_other_patterns(pattern):
    weights = {"a": WEIGHT, "b": 2 * WEIGHT}
    pruned = GlobalMagnitude(pattern=pattern).prune(weights, context=None)
    assert sum(int(p.mask.sum()) for p in pruned.values()) == 8
    if isinstance(pattern, Block):
        # Block sums: a [[5, 2.5], [3.1, 11]], b twice that; the best four are 22, 11, 10, 6.2.
        assert pruned["a"].mask.int().tolist() == [[0, 0, 0, 0], [0, 0, 1, 1]]
        assert pruned["b"].mask.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    else:
        assert torch.equal(pruned["a"].mask, pruned["b"].mask)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_type_of_the_weight_stays(dtype):
    weight = WEIGHT.to(dtype)
    assert Magnitude().prune(weight, Layer(name="a", density=0.5)).weight.dtype == dtype
    assert GlobalMagnitude().prune({"a": weight}, None)["a"].weight.dtype == dtype


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_by_name(value):
    bad = WEIGHT.clone()
    bad[0, 0] = value
    with pytest.raises(NonFinite, match="fc1: the weight has 1 NaN"):
        Magnitude().prune(bad, Layer(name="fc1", density=0.5))
    with pytest.raises(NonFinite, match="fc1: the weight has 1 NaN"):
        GlobalMagnitude().prune({"fine": WEIGHT, "fc1": bad}, None)


def test_the_input_stays_as_it_was():
    weight = WEIGHT.clone().requires_grad_()
    Magnitude().prune(weight.detach(), Layer(name="a", density=0.5))
    assert torch.equal(weight.detach(), WEIGHT)
