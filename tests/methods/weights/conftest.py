"""A small model-wide context of plain tensors: what the methods see, without a host."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sparsecraft.core.errors import MissingStatistic
from sparsecraft.core.seeds import generator


class TwoLayers:
    """relu(x W1^T) W2^T with the cross-entropy of labels, in float64.

    Args:
        seed: The run's seed.
        data: The batches.
    """

    def __init__(self, seed=0, data=(), widths=(6, 8, 3)):
        self.seed = seed
        self.data = list(data)
        self.shapes = {"first": (widths[1], widths[0]), "second": (widths[2], widths[1])}
        self.flows = 0

    def weights(self, dtype=torch.float64):
        """Returns weights of this seed."""
        return {
            name: torch.randn(shape, generator=generator(self.seed, name), dtype=dtype)
            for name, shape in self.shapes.items()
        }

    def generator(self, *labels):
        return generator(self.seed, *labels)

    def batches(self):
        if not self.data:
            raise MissingStatistic("no batches")
        return self.data

    def loss(self, weights, batch, *, temperature=1.0):
        hidden = torch.relu(batch["x"] @ weights["first"].T)
        return F.cross_entropy(hidden @ weights["second"].T / temperature, batch["labels"])

    def flow(self, weights):
        self.flows += 1
        ones = torch.ones(1, self.shapes["first"][1], dtype=torch.float64)
        return (ones @ weights["first"].T @ weights["second"].T).sum()


def batch(size=12, seed=0):
    """Returns a batch of random examples."""
    stream = generator(seed, "batch")
    return {
        "x": torch.randn(size, 6, generator=stream, dtype=torch.float64),
        "labels": torch.randint(0, 3, (size,), generator=stream),
    }


@pytest.fixture
def context():
    return TwoLayers(data=[batch()])


@pytest.fixture
def make_context():
    return TwoLayers


@pytest.fixture
def make_batch():
    return batch
