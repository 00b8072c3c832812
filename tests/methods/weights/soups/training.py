"""A small task for recipes: a network with batch normalisation, its training, its score."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn

from sparsecraft.core.seeds import generator
from sparsecraft.model.batch_norm import recalibrate
from sparsecraft.model.frozen import hold_mask

draw = generator(0, "task")
INPUTS = torch.randn(64, 5, generator=draw)
LABELS = (INPUTS[:, 0] * INPUTS[:, 1] > 0).long() + 2 * (INPUTS[:, 2] > 0).long()


def net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 4))


def train(model, mask=None, *, branch, seed=0, weight_decay=0.0, length=6, rate=0.2, **settings):
    optimizer = torch.optim.SGD(
        model.parameters(), lr=rate, momentum=0.9, weight_decay=weight_decay
    )
    if mask is not None:
        hold_mask(model, mask, optimizer)
    order = generator(seed, "order")
    model.train()
    for _ in range(int(length)):
        index = torch.randint(64, (16,), generator=order)
        optimizer.zero_grad()
        F.cross_entropy(model(INPUTS[index]), LABELS[index]).backward()
        optimizer.step()


def fresh(model):
    return recalibrate(model, INPUTS.split(16))


def evaluate(model):
    model.eval()
    return float((model(INPUTS).argmax(1) == LABELS).double().mean())


class Recording:
    """A training that remembers its calls."""

    def __init__(self, fail_at=None):
        self.calls = []
        self.fail_at = fail_at

    def __call__(self, model, mask=None, *, branch, **settings):
        if len(self.calls) == self.fail_at:
            raise KeyboardInterrupt
        self.calls.append((branch, settings, mask, copy.deepcopy(model.state_dict())))
        train(model, mask, branch=branch, **settings)
