"""Sparse products and their gradients against dense ones, in both back ends."""

import pytest
import torch

from sparsecraft.kernels.backends import use_backend
from sparsecraft.kernels.codes import decode, primitives_torch, selected_pre_activations
from sparsecraft.kernels.codes.primitives import by_column, sampled_products, weighted_sums

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


@pytest.fixture(params=["torch", "numba"])
def backend(request):
    with use_backend(request.param):
        yield request.param


def code(rows, width, dtype=torch.float64, seed=0):
    """Returns a mask with rows of 0 to 9 entries, and its starts, columns and values."""
    stream = torch.Generator().manual_seed(seed)
    places = torch.rand(rows, width, generator=stream).argsort(1)
    mask = places < torch.arange(rows)[:, None] % min(10, width + 1)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), mask.sum(1).cumsum(0)])
    columns = mask.nonzero()[:, 1]
    return mask, starts, columns, torch.randn(len(columns), generator=stream).to(dtype)


def leaf(*shape, dtype=torch.float64, seed=1):
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return made.requires_grad_()


def close(found, expected, dtype=torch.float64):
    found, expected = found.detach(), expected.detach()
    return float((found - expected).abs().max()) <= TOLERANCE[dtype] * float(expected.abs().max())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("width", [1, 13, 64])
def test_products_are_the_dense_ones(backend, dtype, width):
    mask, starts, columns, values = code(23, 17, dtype)
    dense = torch.zeros(23, 17, dtype=dtype)
    dense[mask] = values
    weight, x = leaf(17, width, dtype=dtype).detach(), leaf(23, width, dtype=dtype, seed=2).detach()
    assert close(weighted_sums(starts, columns, values, weight), dense @ weight, dtype)
    assert close(sampled_products(starts, columns, x, weight), (x @ weight.T)[mask], dtype)


def test_entries_by_column(backend):
    starts, columns = torch.tensor([0, 2, 2, 4]), torch.tensor([0, 3, 0, 2])
    listed = by_column(starts, columns, 4)
    assert listed.starts.tolist() == [0, 2, 2, 3, 4]
    assert listed.rows.tolist() == [0, 2, 2, 0]
    assert listed.entries.tolist() == [0, 2, 3, 1]


def test_back_ends_agree_and_threads_change_nothing():
    _, starts, columns, values = code(400, 300, torch.float32)
    weight, x = torch.randn(300, 700), torch.randn(400, 700)
    with use_backend("torch"):
        plain = weighted_sums(starts, columns, values, weight)
        sampled = sampled_products(starts, columns, x, weight)
    with use_backend("numba"):
        one = weighted_sums(starts, columns, values, weight)
        one_sampled = sampled_products(starts, columns, x, weight)
        torch.set_num_threads(2)
        try:
            two = weighted_sums(starts, columns, values, weight)
            two_sampled = sampled_products(starts, columns, x, weight)
        finally:
            torch.set_num_threads(1)
    assert close(one, plain, torch.float32)
    assert close(one_sampled, sampled, torch.float32)
    assert torch.equal(one, two)
    assert torch.equal(one_sampled, two_sampled)


def test_the_reference_goes_through_few_entries_at_a_time(monkeypatch):
    _, starts, columns, values = code(23, 17)
    weight, x = leaf(17, 5).detach(), leaf(23, 5).detach()
    whole = primitives_torch.weighted_sums(starts, columns, values, weight)
    sampled = primitives_torch.sampled_products(starts, columns, x, weight)
    monkeypatch.setattr(primitives_torch, "GATHERED", 15)
    assert close(primitives_torch.weighted_sums(starts, columns, values, weight), whole)
    assert torch.equal(primitives_torch.sampled_products(starts, columns, x, weight), sampled)


def test_gradients_are_those_of_dense_products(backend):
    mask, starts, columns, _ = code(12, 9)
    x, encoder, decoder = leaf(12, 6), leaf(9, 6, seed=3), leaf(9, 6, seed=4)
    b_enc, b_dec, centre = leaf(9, seed=5), leaf(6, seed=6), leaf(6, seed=7)
    leaves = [x, encoder, b_enc, decoder, b_dec, centre]
    goal = torch.randn(12, 6).double()

    dense = torch.where(mask, (x - centre) @ encoder.T + b_enc, 0.0) @ decoder + b_dec
    expected = torch.autograd.grad((dense - goal).square().sum(), leaves)
    values = selected_pre_activations(x, encoder.T, b_enc, starts, columns, centre=centre)
    sparse = decode(starts, columns, values, decoder, b_dec)
    found = torch.autograd.grad((sparse - goal).square().sum(), leaves)
    assert close(sparse, dense)
    for ours, theirs in zip(found, expected, strict=True):
        assert close(ours, theirs)


def test_gradients_by_finite_differences(backend):
    _, starts, columns, values = code(5, 4)
    weight, bias = leaf(4, 3), leaf(3, seed=2)
    values.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda v, w, b: decode(starts, columns, v, w, b), (values, weight, bias)
    )
    x = leaf(5, 3, seed=3)
    assert torch.autograd.gradcheck(
        lambda a, w: selected_pre_activations(a, w.T, None, starts, columns), (x, weight)
    )


def test_unselected_rows_get_no_gradient(backend):
    weight = leaf(4, 3)
    starts, columns = torch.tensor([0, 1]), torch.tensor([2])
    decode(starts, columns, torch.ones(1).double(), weight, None).sum().backward()
    assert weight.grad.tolist() == [[0.0] * 3, [0.0] * 3, [1.0] * 3, [0.0] * 3]


def test_the_encoders_gradient_lies_by_column(backend):
    weight = torch.randn(4, 3).T.requires_grad_()
    starts, columns = torch.tensor([0, 1]), torch.tensor([2])
    selected_pre_activations(torch.ones(1, 3), weight, None, starts, columns).sum().backward()
    assert weight.grad.stride() == weight.stride() == (1, 3)


def test_found_values_are_taken_as_they_are(backend):
    _, starts, columns, values = code(5, 4)
    x, weight = leaf(5, 3), leaf(4, 3)
    found = selected_pre_activations(x, weight.T, None, starts, columns, found=values)
    assert torch.equal(found, values)
    fresh = selected_pre_activations(x, weight.T, None, starts, columns)
    ours, theirs = (torch.autograd.grad(out.sum(), [x, weight]) for out in (found, fresh))
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])


def test_an_empty_code_decodes_to_the_bias(backend):
    starts, columns = torch.zeros(4, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    weight = leaf(5, 2)
    out = decode(starts, columns, torch.zeros(0).double(), weight, torch.tensor([1.0, 2.0]))
    assert out.tolist() == [[1.0, 2.0]] * 3
    out.sum().backward()
    assert not weight.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_on_the_reference(dtype):
    _, starts, columns, values = code(7, 6)
    weight = leaf(6, 4).detach()
    exact = decode(starts, columns, values, weight, None)
    rough = decode(starts, columns, values.to(dtype), weight.to(dtype), None)
    assert rough.dtype == dtype
    assert float((rough - exact).abs().max()) <= 0.05 * float(exact.abs().max())


def test_numba_that_is_forced_says_what_it_cannot_take():
    _, starts, columns, values = code(7, 6, torch.bfloat16)
    with use_backend("numba"), pytest.raises(ValueError, match=r"float32 or float64.*bfloat16"):
        decode(starts, columns, values, torch.ones(6, 4, dtype=torch.bfloat16), None)


@pytest.mark.parametrize(
    ("starts", "columns"),
    [([0, 1], [4]), ([0, 1], [-1]), ([0, 2], [1]), ([1, 1], [1]), ([0, 2, 1], [1])],
)
def test_entries_outside_are_refused(starts, columns):
    with pytest.raises(ValueError, match="do not list entries"):
        decode(torch.tensor(starts), torch.tensor(columns), torch.ones(1), torch.ones(4, 2), None)
