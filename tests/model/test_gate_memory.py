import pytest
import torch
from tests.models import tiny_llama

from sparsecraft.core.errors import OutOfMemory
from sparsecraft.methods.activations.teal import TEAL
from sparsecraft.methods.activations.wina import WINA
from sparsecraft.model.gate_memory import GateMemory, check_memory, gate_memory
from sparsecraft.model.gate_places import find_input_places
from sparsecraft.model.memory import Room


def test_values_of_one_block_are_counted_where_thresholds_need_them():
    model = tiny_llama()
    places = find_input_places(model)
    # One input of q, k and v, one of o, one of gate and up (counted twice), one of down.
    held = 2 * 32 + 2 * 32 + 64
    needed = gate_memory(model, TEAL(), places, tokens=1000)
    assert needed.values_bytes == 4 * 1000 * (held + 3 * 64 + 2 * 32)
    assert needed.copy_bytes == 0
    assert gate_memory(model, TEAL(rule="topk"), places, 1000).bytes == 0
    half = model.to(torch.bfloat16)
    assert gate_memory(half, TEAL(), places, 1000).values_bytes * 2 == needed.values_bytes


def test_a_rotation_keeps_a_copy_of_the_weights():
    model = tiny_llama()
    places = find_input_places(model)
    weights = 4 * sum(p.numel() for p in model.parameters())
    assert gate_memory(model, WINA(), places, 0).copy_bytes == weights
    assert gate_memory(model, WINA(transform=False), places, 0).copy_bytes == 0


def test_too_little_memory_is_refused_with_what_would_fit():
    room = Room(2**20, "RLIMIT_DATA of this process")
    check_memory(GateMemory(2**20, 0), 4096, room)
    with pytest.raises(
        OutOfMemory, match=r"needs about 4\.0 MiB.*only 1\.0 MiB.*--max-tokens 1024"
    ):
        check_memory(GateMemory(2**22, 0), 4096, room)
    with pytest.raises(OutOfMemory, match="--no-rotation"):
        check_memory(GateMemory(0, 2**22), 0, room)
