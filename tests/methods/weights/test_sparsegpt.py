import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.core.errors import InvalidValue, NonFinite
from sparsecraft.core.kinds import Layer
from sparsecraft.core.mask import count
from sparsecraft.core.patterns import NM, Block, Unstructured
from sparsecraft.core.statistics import Hessian
from sparsecraft.methods.weights.magnitude import Magnitude
from sparsecraft.methods.weights.sparsegpt import SparseGPT


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Inputs that depend on each other, so that repairing pays.
INPUTS = drawn(200, 24) @ (torch.eye(24) + 0.4 * drawn(24, 24, seed=1))
WEIGHT = drawn(8, 24, seed=2)


def layer(density, inputs=INPUTS):
    statistic = Hessian(inputs.shape[1])
    statistic.observe(inputs)
    return Layer(name="fc1", density=density, statistics={Hessian: statistic.value})


def error(pruned, weight=WEIGHT, inputs=INPUTS):
    return float((inputs @ (pruned - weight).T).square().sum())


@pytest.mark.parametrize("block_size", [1, 5, 8, 24, 128])
@given(density=st.floats(0.05, 1))
def test_the_count_of_the_layer_is_exact_for_every_block_size(block_size, density):
    pruned = SparseGPT(block_size=block_size).prune(WEIGHT, layer(density))
    assert int(pruned.mask.sum()) == count(8 * 24, density)
    assert not pruned.weight[~pruned.mask].any()


@pytest.mark.parametrize("block_size", [5, 128])
def test_rows(block_size):
    method = SparseGPT(block_size=block_size, pattern=Unstructured(per="row"))
    pruned = method.prune(WEIGHT, layer(0.4))
    assert pruned.mask.sum(1).tolist() == [count(24, 0.4)] * 8


@pytest.mark.parametrize(("keep", "of"), [(2, 4), (1, 3), (4, 8), (3, 6), (7, 12)])
@pytest.mark.parametrize("block_size", [2, 7, 128])
def test_groups_of_any_size(keep, of, block_size):
    method = SparseGPT(pattern=NM(keep, of), block_size=block_size)
    pruned = method.prune(WEIGHT, layer(keep / of))
    assert (pruned.mask.view(8, -1, of).sum(-1) == keep).all()


@pytest.mark.parametrize("pattern", [Unstructured(), NM(2, 4)], ids=str)
def test_it_beats_magnitude_and_its_own_mask_without_repair(pattern):
    ratios = []
    for seed in range(6):
        inputs = drawn(200, 24, seed=seed) @ (torch.eye(24) + 0.1 * drawn(24, 24, seed=seed + 10))
        weight = drawn(8, 24, seed=seed + 20)
        pruned = SparseGPT(pattern=pattern).prune(weight, layer(0.5, inputs))
        magnitude = Magnitude(pattern=pattern).prune(weight, layer(0.5, inputs))
        found = error(pruned.weight, weight, inputs)
        assert found < error(weight * pruned.mask, weight, inputs)
        ratios.append(found / error(magnitude.weight, weight, inputs))
    assert sum(ratios) / 6 < 0.9


def test_without_damping_to_speak_of_the_repair_is_the_least_squares_one():
    """With only the first column removed, the later ones take up all that they can."""
    scaled = WEIGHT.clone()
    scaled[:, 0] *= 1e-3
    method = SparseGPT(pattern=NM(23, 24), damping=1e-9)
    pruned = method.prune(scaled, layer(23 / 24))
    assert pruned.mask[:, 0].sum() == 0
    best = torch.linalg.lstsq(INPUTS[:, 1:], INPUTS @ scaled.T).solution.T
    torch.testing.assert_close(pruned.weight[:, 1:], best, rtol=1e-4, atol=1e-5)


def test_independent_inputs_need_no_repair():
    inputs = torch.diag(torch.arange(1.0, 25))
    pruned = SparseGPT().prune(WEIGHT, layer(0.5, inputs))
    torch.testing.assert_close(pruned.weight, WEIGHT * pruned.mask)


def test_the_block_size_changes_only_what_is_known_when_deciding():
    """With N:M the decision is taken group by group, so blocks are a matter of speed alone."""
    wide = SparseGPT(pattern=NM(2, 4)).prune(WEIGHT, layer(0.5))
    narrow = SparseGPT(pattern=NM(2, 4), block_size=4).prune(WEIGHT, layer(0.5))
    assert torch.equal(wide.mask, narrow.mask)
    torch.testing.assert_close(wide.weight, narrow.weight, rtol=1e-4, atol=1e-5)


def test_density_one_changes_nothing():
    pruned = SparseGPT().prune(WEIGHT, layer(1.0))
    assert pruned.mask.all() and torch.equal(pruned.weight, WEIGHT)


def test_dead_inputs_go_first():
    inputs = INPUTS.clone()
    inputs[:, [3, 20]] = 0
    pruned = SparseGPT().prune(WEIGHT, layer(0.5, inputs))
    assert not pruned.mask[:, [3, 20]].any() and torch.isfinite(pruned.weight).all()


def test_the_type_of_the_weight_stays():
    pruned = SparseGPT().prune(WEIGHT.bfloat16(), layer(0.5))
    assert pruned.weight.dtype == torch.bfloat16 and pruned.mask.dtype == torch.bool


def test_the_input_stays_as_it_was():
    before = WEIGHT.clone()
    asked = layer(0.5)
    hessian = asked[Hessian].clone()
    SparseGPT().prune(WEIGHT, asked)
    assert torch.equal(WEIGHT, before) and torch.equal(asked[Hessian], hessian)


def test_a_hessian_that_is_no_covariance():
    broken = Layer(name="fc1", density=0.5, statistics={Hessian: -torch.eye(24)})
    with pytest.raises(InvalidValue, match=r"fc1: the Hessian .* larger damping such as 0\.1"):
        SparseGPT().prune(WEIGHT, broken)
    broken = Layer(name="fc1", density=0.5, statistics={Hessian: torch.eye(24) / 0})
    with pytest.raises(NonFinite, match="fc1: the Hessian"):
        SparseGPT().prune(WEIGHT, broken)
    with pytest.raises(NonFinite, match="fc1: the weight"):
        SparseGPT().prune(WEIGHT / 0, layer(0.5))


@pytest.mark.parametrize(
    "options", [{"pattern": Block(2, 2)}, {"block_size": 0}, {"damping": 0.0}, {"damping": -1.0}]
)
def test_wrong_options(options):
    with pytest.raises(InvalidValue):
        SparseGPT(**options)


def test_a_width_that_the_groups_do_not_divide():
    with pytest.raises(InvalidValue, match="fc1: 2:5 needs a multiple of 5"):
        SparseGPT(pattern=NM(2, 5)).prune(WEIGHT, layer(0.4))
