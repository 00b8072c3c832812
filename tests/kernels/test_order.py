import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.kernels import order as order_module
from sparsecraft.kernels.order import Order, common_order, segments

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_keys_of_all_16_bit_floats_have_the_order_of_the_floats(dtype):
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    values = values[~torch.isnan(values)]
    keys = Order(dtype).keys(values)
    by_key = values[keys.sort(stable=True).indices].double()
    assert bool((by_key.diff().nan_to_num() >= 0).all())
    same_key = keys.sort().values.diff() == 0
    assert int(same_key.sum()) == 1  # only the two zeros share a key
    magnitudes = Order(dtype, absolute=True).keys(values)
    assert torch.equal(magnitudes, keys.abs())


@pytest.mark.parametrize("dtype", DTYPES)
def test_order_at_the_edges(dtype):
    info = torch.finfo(dtype)
    inf = float("inf")
    values = torch.tensor(
        [-inf, info.min, -1.0, -info.tiny, 0.0, info.tiny, 1.0, info.max, inf], dtype=dtype
    )
    keys = Order(dtype).keys(values).tolist()
    assert all(a < b for a, b in itertools.pairwise(keys))
    assert keys[-1] == Order(dtype).infinity == -keys[0]
    assert Order(dtype).keys(torch.tensor([0.0, -0.0], dtype=dtype)).tolist() == [0, 0]


@pytest.mark.parametrize("dtype", DTYPES)
@given(number=st.floats(allow_nan=False, width=16))
def test_a_value_comes_back_from_its_key(dtype, number):
    value = torch.tensor(number, dtype=dtype)
    order = Order(dtype)
    assert order.value(int(order.keys(value))).item() == value.item()


def test_mixed_types_are_compared_in_the_wider_one():
    half, brain = torch.zeros(1, dtype=torch.float16), torch.zeros(1, dtype=torch.bfloat16)
    assert common_order([half, brain]).dtype == torch.float32
    assert common_order([brain]).dtype == torch.bfloat16
    assert common_order([half, torch.zeros(1, dtype=torch.float64)]).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_other_types_are_refused(dtype):
    with pytest.raises(ValueError, match="allowed: float16, bfloat16, float32, float64"):
        common_order([torch.zeros(2, dtype=dtype)])


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(35.0),
        torch.arange(35.0).view(5, 7),
        torch.arange(35.0).view(5, 7).t(),
        torch.arange(70.0)[::2],
        torch.arange(70.0).view(1, 70)[:, ::2],
        torch.arange(60.0).view(3, 4, 5).permute(2, 0, 1),
        torch.tensor(3.0),
        torch.empty(0),
        torch.empty(3, 0),
    ],
)
def test_segments_join_to_the_flat_tensor_and_share_its_memory(monkeypatch, tensor):
    monkeypatch.setattr(order_module, "SEGMENT", 8)
    pieces = segments(tensor)
    joined = [value for piece in pieces for value in piece.reshape(-1).tolist()]
    assert joined == tensor.reshape(-1).tolist()
    assert all(0 < piece.numel() <= 8 for piece in pieces)
    storage = tensor.untyped_storage().data_ptr()
    assert all(piece.untyped_storage().data_ptr() == storage for piece in pieces)
