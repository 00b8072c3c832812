"""Trains a tiny task and kills itself after a step: `training_killed.py CHECKPOINT METHOD STEP`."""

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from sparsecraft.core import catalog
from sparsecraft.lab.tasks.training import Fit
from sparsecraft.lab.tasks.vision import Images, ImageTask
from sparsecraft.lab.training import TrainSettings, train_task

STEPS = 24


class Stripes(ImageTask):
    """Are the stripes of a 6x6 picture upright or level? With dropout and batch normalisation."""

    def __init__(self):
        draw = torch.Generator().manual_seed(0)
        waves = (torch.arange(6) % 2).float() * 2 - 1
        labels = torch.arange(240) % 2
        clean = torch.where(labels.bool()[:, None, None], waves[:, None], waves[None, :])
        pixels = clean[:, None] + 0.8 * torch.randn(240, 1, 6, 6, generator=draw)
        parts = {"training": slice(0, 160), "validation": slice(160, 200), "test": slice(200, 240)}
        super().__init__(
            name="stripes",
            about="Stripes.",
            images={part: Images(pixels[rows], labels[rows]) for part, rows in parts.items()},
            architecture="A tiny net",
            schedule=Fit(steps=STEPS, batch_size=16, learning_rate=5e-3),
        )

    def build(self):
        return Net()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(36, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.2),
            nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 2),
        )  # fmt: skip

    def forward(self, pixel_values):
        return self.layers(pixel_values)


def method_of(name):
    if name == "dense":
        return None
    options = {"every": 3} if name in ("rigl", "set") else {}
    return catalog.build(name, sparsity=0.5, **options)


def train(name, checkpoint=None, **options):
    settings = TrainSettings(
        steps=STEPS, batch_size=16, learning_rate=5e-3, accumulate=2, weight_decay=0.01
    )
    return train_task(
        Stripes(), method_of(name), settings, checkpoint=checkpoint, checkpoint_every=5, **options
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    checkpoint, name, last = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

    def kill(step, total, loss):
        if step == last:
            os.kill(os.getpid(), signal.SIGKILL)

    train(name, checkpoint, progress=kill)
