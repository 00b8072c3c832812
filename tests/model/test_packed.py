"""The packed form holds a state dict bit for bit, in fewer bytes."""

import json
import struct

import numpy as np
import pytest
import torch
from torch import nn

from sparsecraft.core.errors import CheckpointError
from sparsecraft.model.packed import (
    load_packed,
    pack_state,
    packed_bytes,
    save_packed,
    unpack_state,
)


def sparse_linear(dtype=torch.float32, density=0.5):
    torch.manual_seed(0)
    layer = nn.Linear(64, 32).to(dtype)
    with torch.no_grad():
        layer.weight *= torch.rand(32, 64) < density
    return layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_round_trip_is_bit_equal(tmp_path, dtype):
    layer = sparse_linear(dtype)
    layer.weight.data[0, 0] = -0.0
    save_packed(layer, tmp_path / "w.safetensors")
    state = load_packed(tmp_path / "w.safetensors")
    assert state.keys() == layer.state_dict().keys()
    for name, tensor in layer.state_dict().items():
        assert state[name].dtype == tensor.dtype
        view = torch.int16 if tensor.element_size() == 2 else torch.int32
        assert torch.equal(state[name].view(view), tensor.view(view))


def test_size_is_that_of_bits_and_values():
    tensors, _ = pack_state({"w": torch.eye(64, dtype=torch.bfloat16)})
    assert {name: t.numel() * t.element_size() for name, t in tensors.items()} == {
        "w.bits": 512,
        "w.values": 128,
    }


def test_half_dense_bfloat16_takes_0_56_of_dense():
    layer = nn.Linear(512, 512, bias=False).bfloat16()
    with torch.no_grad():
        layer.weight.view(-1)[::2] = 0
    share = packed_bytes(layer) / (512 * 512 * 2)
    assert share == pytest.approx(0.5625, abs=0.001)


def test_dense_tensors_stay_as_they_are_and_shared_ones_are_stored_once():
    weight = torch.randn(8, 8)
    tensors, metadata = pack_state({"a": weight, "b": weight, "bias": torch.zeros(4)})
    assert set(tensors) == {"a", "bias"}
    state = unpack_state(tensors, metadata)
    assert torch.equal(state["b"], weight)


def test_a_foreign_file_is_refused():
    with pytest.raises(CheckpointError, match="not a packed"):
        unpack_state({}, {"format": "pt"})


def test_twenty_lines_of_numpy_read_it(tmp_path):
    layer = sparse_linear()
    path = tmp_path / "w.safetensors"
    save_packed(layer, path)
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    types = {"U8": np.uint8, "F32": np.float32}

    def read(name):
        start, stop = (8 + length + o for o in header[name]["data_offsets"])
        return np.frombuffer(raw[start:stop], types[header[name]["dtype"]])

    shape = json.loads(header["__metadata__"]["shapes"])["weight"]
    keep = np.unpackbits(read("weight.bits"))[: np.prod(shape)].astype(bool)
    whole = np.zeros(np.prod(shape), np.float32)
    whole[keep] = read("weight.values")
    np.testing.assert_array_equal(whole.reshape(shape), layer.weight.detach().numpy())
