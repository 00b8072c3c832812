import pytest
import torch

from sparsecraft.core.errors import MissingStatistic, NonFinite
from sparsecraft.core.kinds import Layer
from sparsecraft.core.patterns import NM, Unstructured
from sparsecraft.core.statistics import InputNorm
from sparsecraft.methods.weights.magnitude import Magnitude
from sparsecraft.methods.weights.wanda import Wanda

WEIGHT = torch.tensor([[1.0, -2.0, 3.0, 4.0], [4.0, 0.5, -1.0, 0.1]])


def layer(norm, density=0.5):
    return Layer(name="fc1", density=density, statistics={InputNorm: torch.tensor(norm)})


def test_by_hand():
    # |W| * norm: [[8, 2, 3, 4], [32, .5, 1, .1]]
    pruned = Wanda().prune(WEIGHT, layer([8.0, 1.0, 1.0, 1.0]))
    assert pruned.mask.int().tolist() == [[1, 0, 0, 1], [1, 0, 1, 0]]
    assert pruned.weight.tolist() == [[1.0, 0.0, 0.0, 4.0], [4.0, 0.0, -1.0, 0.0]]


def test_over_the_whole_matrix_and_in_groups():
    norm = layer([8.0, 1.0, 1.0, 1.0])
    whole = Wanda(pattern=Unstructured()).prune(WEIGHT, norm)
    assert whole.mask.int().tolist() == [[1, 0, 1, 1], [1, 0, 0, 0]]
    pairs = Wanda(pattern=NM(1, 2)).prune(WEIGHT, norm)
    assert pairs.mask.int().tolist() == [[1, 0, 0, 1], [1, 0, 1, 0]]


def test_with_equal_norms_it_is_magnitude():
    pruned = Wanda().prune(WEIGHT, layer([2.0] * 4))
    magnitude = Magnitude(pattern=Unstructured(per="row")).prune(WEIGHT, layer([2.0] * 4))
    assert torch.equal(pruned.mask, magnitude.mask)


def test_the_scale_of_the_norm_does_not_matter():
    norm = [0.3, 5.0, 0.01, 2.0]
    scaled = [1024 * each for each in norm]
    assert torch.equal(
        Wanda().prune(WEIGHT, layer(norm)).mask, Wanda().prune(WEIGHT, layer(scaled)).mask
    )


def test_rows_are_the_default():
    assert Wanda().pattern == Unstructured(per="row") and Wanda().statistics == (InputNorm,)


def test_errors_name_the_layer():
    with pytest.raises(MissingStatistic, match="fc1: no InputNorm"):
        Wanda().prune(WEIGHT, Layer(name="fc1", density=0.5))
    with pytest.raises(NonFinite, match="fc1: the norm of its input"):
        Wanda().prune(WEIGHT, layer([1.0, float("nan"), 1.0, 1.0]))
    with pytest.raises(NonFinite, match="fc1: the weight"):
        Wanda().prune(WEIGHT / 0, layer([1.0] * 4))
