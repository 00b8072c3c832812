import pytest
import torch

from sparsecraft.model.runtime.torch_formats import TORCH_FORMATS, TorchDense, TorchInt4

ERRORS = {"float32": 1e-6, "bfloat16": 0.01, "int8": 0.02, "int4": 0.15}


def made(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", sorted(TORCH_FORMATS))
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [False, True])
def test_products_are_near_the_exact_one(dtype, x_dtype, with_bias):
    weight, x = made(32, 128), made(5, 128, seed=1).to(x_dtype)
    bias = made(32, seed=2) if with_bias else None
    store = TORCH_FORMATS[dtype].pack(weight, dtype)
    wanted = torch.nn.functional.linear(x.float(), weight, bias)
    found = store.multiply(x, bias)
    assert found.dtype == x_dtype
    assert found.shape == (5, 32)
    error = float((found.float() - wanted).norm() / wanted.norm())
    assert error < max(ERRORS[dtype], 0.01 if x_dtype == torch.bfloat16 else 0)


@pytest.mark.parametrize("dtype", sorted(TORCH_FORMATS))
def test_what_is_stored_can_be_read_back(dtype):
    weight = made(32, 128)
    store = TORCH_FORMATS[dtype].pack(weight, dtype)
    again = type(store).from_tensors(store.shape, store.dtype, store.tensors())
    assert again.shape == (32, 128)
    assert again.dtype == dtype
    assert torch.equal(again.unpack(), store.unpack())
    error = float((store.unpack().float() - weight).norm() / weight.norm())
    assert error < ERRORS[dtype]


def test_bytes():
    sizes = {dtype: kind.pack(made(32, 128), dtype).nbytes for dtype, kind in TORCH_FORMATS.items()}
    assert sizes["float32"] == 4 * 32 * 128
    assert sizes["bfloat16"] == 2 * 32 * 128
    assert sizes["int8"] == 32 * 128 + 4 * 32
    assert sizes["int4"] == 32 * 128 // 2 + 2 * 2 * 2 * 32


def test_a_weight_of_the_type_asked_for_is_not_copied():
    weight = made(4, 4)
    assert TorchDense.pack(weight).unpack().data_ptr() == weight.data_ptr()


def test_int4_refuses_shapes_that_torch_cannot_take():
    with pytest.raises(ValueError, match="groups of 64"):
        TorchInt4.pack(made(32, 100))
