"""Training checkpoints: bit-equal after a real kill in the middle of a save, and never a model."""

import os
import signal
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sparsecraft
from sparsecraft import Sparsifier
from sparsecraft.core.errors import CheckpointError
from sparsecraft.core.seeds import generator
from sparsecraft.model.training_checkpoints import load_training, read_training, save_training

STEPS = 12


def begin():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.1), nn.Tanh(), nn.Linear(8, 4))
    sparsifier = Sparsifier(model, "rigl", sparsity=0.5, every=2, total_steps=STEPS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    sparsifier.attach(optimizer)
    return model, sparsifier, optimizer, scheduler


def train(path, until=STEPS):
    """Trains with a checkpoint after every step, from the last one if there is one."""
    model, sparsifier, optimizer, scheduler = begin()
    if Path(path).exists():
        extra = load_training(path, sparsifier, optimizer, scheduler)
        assert extra["position"] == sparsifier.step
    model.train()
    while sparsifier.step < until:
        x = torch.randn(16, 6, generator=generator(1, sparsifier.step))
        optimizer.zero_grad()
        (F.cross_entropy(model(x), torch.arange(16) % 4) + sparsifier.loss()).backward()
        optimizer.step()
        scheduler.step()
        save_training(path, sparsifier, optimizer, scheduler, {"position": sparsifier.step})
    return model, sparsifier


def killed_train(path, write):
    """Trains, and kills itself in the middle of the given write: some bytes are on the disk."""
    real, count = os.fdopen, [0]

    def cut_short(handle, *args):
        count[0] += 1
        if count[0] == write:
            os.write(handle, b"half a checkpoint")
            os.kill(os.getpid(), signal.SIGKILL)
        return real(handle, *args)

    os.fdopen = cut_short
    train(path)


def test_killed_in_the_middle_of_any_save_it_resumes_bit_by_bit(tmp_path):
    expected, mask = train(tmp_path / "whole.pt")
    path = tmp_path / "killed.pt"
    for write in (1, 3, 2, 4):
        child = os.fork()
        if child == 0:
            killed_train(path, write)
            os._exit(0)  # not reached: the save was never killed
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    reached = read_training(path)["sparsifier"]["step"]
    assert 0 < reached < STEPS
    model, sparsifier = train(path)
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected.state_dict()[key])
    assert sparsifier.mask == mask.mask


def test_a_training_checkpoint_is_never_a_model(tmp_path):
    train(tmp_path / "training.pt", until=2)
    with pytest.raises(CheckpointError, match="resumed and finalized"):
        sparsecraft.load(tmp_path / "training.pt")


def test_files_that_are_none_are_refused(tmp_path):
    model, sparsifier, optimizer, _ = begin()
    with pytest.raises(CheckpointError, match="there is no training checkpoint"):
        load_training(tmp_path / "missing.pt", sparsifier, optimizer)
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04half")
    with pytest.raises(CheckpointError, match="not a training checkpoint, or damaged"):
        load_training(tmp_path / "cut.pt", sparsifier, optimizer)
    torch.save(model.state_dict(), tmp_path / "plain.pt")
    with pytest.raises(CheckpointError, match="not a training checkpoint of sparsecraft"):
        load_training(tmp_path / "plain.pt", sparsifier, optimizer)


def test_a_pickle_with_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"marker": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="not a training checkpoint"):
        read_training(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_another_model_is_refused_before_the_sparsifier_moves(tmp_path):
    train(tmp_path / "a.pt", until=3)
    torch.manual_seed(0)
    other = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4))
    sparsifier = Sparsifier(other, "rigl", sparsity=0.5, every=2, total_steps=STEPS)
    optimizer = torch.optim.AdamW(other.parameters())
    sparsifier.attach(optimizer)
    with pytest.raises(CheckpointError, match="another targets"):
        load_training(tmp_path / "a.pt", sparsifier, optimizer)
    assert sparsifier.step == 0


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "training.pt"
    train(path, until=2)
    before = path.read_bytes()
    _, sparsifier, optimizer, _ = begin()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save_training(path, sparsifier, optimizer)
    assert path.read_bytes() == before
