"""One pass of Adam against torch.optim.Adam and a projection written out."""

import pytest
import torch

from sparsecraft.kernels.backends import use_backend
from sparsecraft.kernels.codes import adam
from sparsecraft.kernels.codes.adam import AdamStep, adam_step


@pytest.fixture(autouse=True, params=["torch", "numba"])
def backend(request):
    with use_backend(request.param):
        yield request.param


def tensors(*shape, dtype=torch.float64):
    stream = torch.Generator().manual_seed(3)
    weight, gradient, mean = (torch.randn(shape, generator=stream).to(dtype) for _ in range(3))
    return weight, gradient, 0.1 * mean, torch.rand(shape, generator=stream).to(dtype)


def test_a_row_by_hand():
    weight, gradient = torch.tensor([[0.6, 0.8]]).double(), torch.tensor([[1.0, 1.0]]).double()
    mean, square = torch.zeros(1, 2).double(), torch.zeros(1, 2).double()
    adam_step(weight, gradient, mean, square, AdamStep(0.1, 1, epsilon=0.0), unit_rows=True)
    # g - (g.w) w = (1 - 1.4 * 0.6, 1 - 1.4 * 0.8) = (0.16, -0.12); the first step has size 0.1.
    stepped = torch.tensor([[0.5, 0.9]]).double()
    assert torch.allclose(weight, stepped / stepped.norm())
    assert torch.allclose(mean, torch.tensor([[0.016, -0.012]]).double())
    assert torch.allclose(square, torch.tensor([[0.001 * 0.16**2, 0.001 * 0.12**2]]).double())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(7,), (5, 9), (2, 3, 4), ()])
def test_without_unit_rows_it_is_adam(dtype, shape):
    weight, gradient, mean, square = tensors(*shape, dtype=dtype)
    other = torch.nn.Parameter(weight.clone())
    reference = torch.optim.Adam([other], lr=0.02, betas=(0.8, 0.95), eps=1e-7)
    reference.state[other] = {
        "step": torch.tensor(4.0),
        "exp_avg": mean.clone(),
        "exp_avg_sq": square.clone(),
    }
    other.grad = 0.5 * gradient
    reference.step()
    adam_step(weight, gradient, mean, square, AdamStep(0.02, 5, 0.8, 0.95, 1e-7, scale=0.5))
    state = reference.state[other]
    assert torch.allclose(weight, other.detach(), atol=1e-6, rtol=1e-6)
    assert torch.allclose(mean, state["exp_avg"], atol=1e-6, rtol=1e-6)
    assert torch.allclose(square, state["exp_avg_sq"], atol=1e-6, rtol=1e-6)


def test_rows_end_at_norm_one_and_a_zero_row_stays():
    weight, gradient, mean, square = tensors(6, 5)
    weight[2], gradient[2], mean[2] = 0, 0, 0
    adam_step(weight, gradient, mean, square, AdamStep(0.1, 3), unit_rows=True)
    norms = weight.norm(dim=1)
    assert norms[2] == 0
    assert torch.allclose(norms[norms > 0], torch.ones(5).double())


def test_rows_without_gradient_move_by_their_moments():
    weight, gradient, mean, square = tensors(4, 3)
    gradient.zero_()
    before = weight.clone()
    adam_step(weight, gradient, mean, square, AdamStep(0.1, 3))
    assert (weight != before).all()


def test_parts_threads_and_layout_change_nothing(monkeypatch, backend):
    whole, pieces, turned = (tensors(64, 40) for _ in range(3))
    turned = [tensor.T.contiguous().T for tensor in turned]
    step = AdamStep(0.05, 2)
    adam_step(*whole, step, unit_rows=True)
    monkeypatch.setattr(adam, "PART", 100)
    torch.set_num_threads(2)
    try:
        adam_step(*pieces, step, unit_rows=True)
    finally:
        torch.set_num_threads(1)
    adam_step(*turned, step, unit_rows=True)
    assert torch.equal(whole[0], pieces[0])
    assert torch.allclose(whole[0], turned[0])


def test_the_gradient_is_only_read():
    weight, gradient, mean, square = tensors(4, 3)
    before = gradient.clone()
    adam_step(weight, gradient, mean, square, AdamStep(0.1, 3, scale=0.5), unit_rows=True)
    assert torch.equal(gradient, before)


def test_unit_rows_needs_a_matrix():
    with pytest.raises(ValueError, match=r"the weight has 1 dimensions. Leave it off"):
        adam_step(*tensors(4), AdamStep(0.1, 1), unit_rows=True)
