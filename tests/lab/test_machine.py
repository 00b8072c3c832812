import json

import torch

import sparsecraft
from sparsecraft.lab import machine


def test_the_environment_is_plain_and_says_what_decides_results():
    found = json.loads(json.dumps(machine.environment("cpu", "bfloat16")))
    assert torch.__version__.startswith(found["versions"]["torch"].split("+")[0])
    assert found["versions"]["sparsecraft"] == sparsecraft.__version__
    assert found["machine"]["dtype"] == "bfloat16"
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert found["machine"]["cpu"]
    assert found["machine"]["cores"] >= 1
    assert found["backends"]["backend"] in ("numba", "torch")


def test_memory_is_counted():
    before = machine.peak_memory_bytes()
    block = torch.ones(32 * 2**20)  # 128 MiB
    assert machine.peak_memory_bytes() >= max(before, block.numel() * 4)
    assert machine.memory_bytes() > block.numel() * 4


def test_a_cpu_is_its_own_name():
    assert machine.device_name("cpu") == "cpu"
