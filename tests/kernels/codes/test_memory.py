"""Memory of large results."""

import pytest
import torch

from sparsecraft.kernels.codes.memory import converted, empty


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 4), (0, 4), (3, 0)])
def test_an_empty_tensor_has_shape_type_and_order(dtype, shape):
    made = empty(shape, dtype, torch.device("cpu"))
    assert (made.shape, made.dtype) == (torch.Size(shape), dtype)
    assert made.is_contiguous()
    assert torch.equal(made.fill_(2.0).float(), torch.full(shape, 2.0))


def test_a_matrix_is_converted_where_it_lies():
    matrix = torch.randn(3, 4)
    assert converted(matrix, torch.float32) is matrix
    for laid in (matrix, matrix.T.contiguous().T):
        narrow = converted(laid, torch.bfloat16)
        assert torch.equal(narrow, laid.bfloat16())
        assert narrow.stride() == laid.stride()
