import gc

import pytest
import torch

from sparsecraft.core import inverse_factor as module
from sparsecraft.core.errors import InvalidValue, NonFinite
from sparsecraft.core.inverse_factor import inverse_factor


def hessian(features, seed=0):
    inputs = torch.randn(3 * features, features, generator=torch.Generator().manual_seed(seed))
    return inputs.T @ inputs


@pytest.mark.parametrize("features", [1, 5, 128, 129, 300])
def test_it_is_the_upper_factor_of_the_damped_inverse(features):
    matrix = hessian(features)
    found = inverse_factor(matrix, 0.01, "fc").upper
    damped = matrix.double() + 0.01 * matrix.diagonal().mean() * torch.eye(features)
    expected = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    assert torch.equal(found, found.triu())
    assert torch.allclose(found.double(), expected, rtol=1e-3, atol=1e-5)


def test_dead_inputs_count_as_one():
    matrix = hessian(6)
    matrix[2], matrix[:, 2] = 0, 0
    found = inverse_factor(matrix, 0.01, "fc")
    assert found.dead.tolist() == [False, False, True, False, False, False]
    damping = 0.01 * (matrix.diagonal().sum() + 1) / 6
    assert float(found.upper[2, 2]) == pytest.approx(float((1 + damping).rsqrt()), rel=1e-5)


def test_it_is_made_once_for_a_tensor_and_a_damping_and_forgotten_with_the_tensor():
    matrix = hessian(4)
    first = inverse_factor(matrix, 0.01, "q")
    assert inverse_factor(matrix, 0.01, "k") is first
    assert inverse_factor(matrix, 0.02, "k") is not first
    assert inverse_factor(matrix.clone(), 0.01, "k") is not first
    gc.collect()
    before = len(module._made)
    del matrix
    gc.collect()
    assert len(module._made) == before - 1


def test_what_cannot_be_factored_says_what_to_do():
    with pytest.raises(InvalidValue, match=r"not positive definite.*damping=0.01.*such as 0.1"):
        inverse_factor(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), 0.01, "fc")
    with pytest.raises(NonFinite, match="fc"):
        inverse_factor(torch.tensor([[float("nan")]]), 0.01, "fc")
