"""The selection from pre-activations that are formed some rows at a time."""

from itertools import pairwise

import pytest
import torch

from sparsecraft.kernels.codes import encode_rows, encoder, pre_activations, refined_rows


def layer(rows=20, d=24, width=300, seed=0):
    stream = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(rows, d, generator=stream), torch.randn(width, d, generator=stream).T
    return x, weight, 0.1 * torch.randn(width, generator=stream)


def best(u, keep, absolute=False):
    """The set of (row, column) of the largest, by torch.topk."""
    ranks = u.abs() if absolute else u.relu()
    columns = ranks.topk(keep, dim=1).indices
    return {(i, int(j)) for i, row in enumerate(columns) for j in row}


def entries(starts, columns):
    rows = torch.arange(len(starts) - 1).repeat_interleave(starts.diff())
    return set(zip(rows.tolist(), columns.tolist(), strict=True))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("buffer", [1, 4 * 300 * 7, 1 << 26])
def test_the_largest_and_their_exact_values(precision, absolute, buffer, monkeypatch):
    monkeypatch.setattr(encoder, "BUFFER", buffer)
    x, weight, bias = layer()
    starts, columns, values = encode_rows(
        x, weight, bias, 5, absolute=absolute, precision=precision
    )
    u = x @ weight + bias
    rows = torch.arange(20).repeat_interleave(starts.diff())
    assert entries(starts, columns) == best(u, 5, absolute)
    assert torch.allclose(values, u[rows, columns], atol=1e-5, rtol=1e-5)
    assert values.dtype == torch.float32
    assert all(
        columns[a:b].tolist() == sorted(columns[a:b].tolist()) for a, b in pairwise(starts.tolist())
    )


def test_rough_values_only_propose():
    x, weight, bias = layer()
    u = pre_activations(x, weight, bias)
    noise = torch.randn(u.shape, generator=torch.Generator().manual_seed(1))
    rough = (u + 0.05 * noise).bfloat16()
    starts, columns, _ = refined_rows(x, weight, bias, rough, 5)
    assert entries(starts, columns) == best(u, 5)
    assert best(rough.float(), 5) != best(u, 5)


def test_a_row_with_few_positive_entries_has_a_short_code():
    x, weight = torch.ones(2, 1), torch.tensor([[1.0, -2.0, 0.0]])
    for precision in ("float32", "bfloat16"):
        starts, columns, values = encode_rows(x, weight, None, 3, precision=precision)
        assert starts.tolist() == [0, 1, 2]
        assert columns.tolist() == [0, 0]
        assert values.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pre_activations_in_bfloat16_are_within_three_roundings(dtype):
    x, weight, bias = (tensor.to(dtype) for tensor in layer())
    rough, exact = (pre_activations(x, weight, bias, p) for p in ("bfloat16", "float32"))
    assert rough.dtype == dtype
    # Two factors and their product are rounded to 8 bits: 2^-9 each, and a little of second order.
    bound = 3.02 * 2**-9 * (x.abs() @ weight.abs()) + 1e-6
    assert bool(((rough - exact).abs() <= bound).all())
    assert float((rough - exact).abs().max()) > 1e-4
    product = rough - bias
    torch.testing.assert_close(product, product.bfloat16().to(dtype), atol=1e-6, rtol=0)


def test_gradients_of_pre_activations_in_bfloat16_are_those_of_float32():
    found = []
    upstream = torch.randn(20, 300, generator=torch.Generator().manual_seed(2))
    for precision in ("bfloat16", "float32"):
        leaves = [tensor.requires_grad_() for tensor in layer()]
        pre_activations(*leaves, precision).backward(upstream)
        found.append([leaf.grad for leaf in leaves])
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
        assert not torch.equal(got, got.bfloat16().float())
    assert found[0][1].T.is_contiguous()


def test_an_unknown_precision_is_refused():
    x, weight, bias = layer()
    with pytest.raises(ValueError, match=r"precision='int8' is not known; allowed: float32, bf"):
        pre_activations(x, weight, bias, "int8")
    with pytest.raises(ValueError, match=r"precision='int8'"):
        encode_rows(x, weight, bias, 5, precision="int8")


def test_nan_in_pre_activations_is_an_error():
    x, weight, bias = layer()
    bias[3] = float("nan")
    for precision in ("float32", "bfloat16"):
        with pytest.raises(ValueError, match="hold NaN"):
            encode_rows(x, weight, bias, 5, precision=precision)
