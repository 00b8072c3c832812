"""The training of dense models: what is stopped goes on as if it had not been."""

from __future__ import annotations

from itertools import count

import pytest
import torch
from torch import nn

from sparsecraft.lab.tasks import training
from sparsecraft.lab.tasks.training import Fit, fit, seeded

SETTINGS = Fit(steps=7, batch_size=4, learning_rate=1e-2)


class Stopped(Exception):
    """Stands for a kill."""


def batches():
    for step in count():
        draw = torch.Generator().manual_seed(step)
        yield {"x": torch.randn(4, 3, generator=draw)}


def loss(model, batch):
    return (model(batch["x"]) - batch["x"].sum(1, keepdim=True)).square().mean()


def new_model():
    return seeded(lambda: nn.Linear(3, 1), 0)


@pytest.mark.parametrize("stop", [1, 2, 3, 5, 6])
def test_a_stopped_training_ends_with_the_same_weights(stop, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_EVERY", 2)
    whole = fit(new_model(), batches(), loss, SETTINGS, "toy")
    steps = count()

    def stopping(model, batch):
        if next(steps) == stop:
            raise Stopped
        return loss(model, batch)

    kept = tmp_path / "training.pt"
    with pytest.raises(Stopped):
        fit(new_model(), batches(), stopping, SETTINGS, "toy", kept)
    assert kept.is_file() == (stop >= 2)
    resumed = fit(new_model(), batches(), loss, SETTINGS, "toy", kept)
    assert torch.equal(resumed.weight, whole.weight) and torch.equal(resumed.bias, whole.bias)


def test_without_a_file_nothing_is_kept(tmp_path):
    fit(new_model(), batches(), loss, SETTINGS, "toy")
    assert not list(tmp_path.iterdir())
