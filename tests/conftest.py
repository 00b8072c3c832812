"""Shared settings: one torch thread, derandomised hypothesis, offline hubs."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ci")


@pytest.fixture
def data_dir():
    """The folder of real data files, or a skip."""
    from pathlib import Path

    root = os.environ.get("SPARSECRAFT_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("SPARSECRAFT_DATA is not set")
    return Path(root)
