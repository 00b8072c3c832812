"""The memory that is needed is said before the start, with the setting that would fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.models import batches_for, tiny_llama

from sparsecraft.core.errors import OutOfMemory
from sparsecraft.model.checkpoints import quiet
from sparsecraft.model.memory import Room
from sparsecraft.model.streaming import host, prune_directory
from sparsecraft.model.streaming.budget import Budget
from sparsecraft.model.streaming.choice import Choice, choose

SMALL = Budget(
    block=2**20, matrix=2**20, statistics=2**10, before=2**20, hidden=2**10, passing=2**12,
    tokens=2**20, batch=2**12,
)  # fmt: skip


@pytest.fixture
def source(tmp_path) -> Path:
    with quiet():
        tiny_llama().save_pretrained(str(tmp_path / "dense"))
    return tmp_path / "dense"


def test_what_fits_passes():
    SMALL.check(Room(SMALL.bytes, "a limit"))
    SMALL.check(None)
    assert SMALL.bytes > SMALL.tokens * SMALL.hidden


def test_the_setting_that_would_fit():
    with pytest.raises(OutOfMemory) as caught:
        SMALL.check(Room(2**29, "RLIMIT_DATA of this process"))
    message = str(caught.value)
    assert "512 MiB is left: RLIMIT_DATA of this process" in message
    assert "hidden states of 1048576 tokens 1.0 GiB" in message
    assert "It would fit with --max-tokens 262144" in message
    assert SMALL.with_tokens(262144, 2**12) <= 2**29 < SMALL.with_tokens(524288, 2**12)


def test_what_no_setting_makes_fit():
    with pytest.raises(OutOfMemory, match=r"No setting makes it fit; it needs .* at least"):
        SMALL.check(Room(2**20, "max_memory"))


def test_refused_before_anything_is_written(source, tmp_path):
    data = batches_for(tiny_llama())
    with pytest.raises(OutOfMemory, match="max_memory"):
        prune_directory(source, tmp_path / "out", "wanda", calibration=data, max_memory=2**20)
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_larger_statistics_need_more(source, tmp_path, monkeypatch):
    monkeypatch.setattr(host, "room", lambda most: None)
    needed = {}
    for method in ("wanda", "sparsegpt", "magnitude"):
        data = batches_for(tiny_llama()) if method != "magnitude" else []
        prune_directory(
            source, tmp_path / method, method, calibration=data,
            announce=lambda budget, targets, method=method: needed.update({method: budget}),
        )  # fmt: skip
    assert needed["sparsegpt"].statistics > 10 * needed["wanda"].statistics > 0
    assert (needed["magnitude"].statistics, needed["magnitude"].hidden) == (0, 0)
    assert needed["wanda"].tokens == 72
    assert needed["wanda"].hidden == 32 * 4


def test_the_choice_looks_at_the_headers_only(source, tmp_path):
    weights = sum(p.numel() for p in tiny_llama().parameters())
    found = choose(source, torch.float32)
    assert found.needed == int(1.2 * 4 * weights)
    assert found.fits
    assert choose(source, torch.bfloat16).needed == int(1.2 * 2 * weights)
    assert not Choice(found.needed, Room(found.needed - 1, "a limit")).fits
    assert choose(tmp_path / "none", torch.float32) is None
    assert choose(tmp_path, torch.float32) is None
