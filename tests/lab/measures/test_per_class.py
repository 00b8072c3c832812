"""Accuracy class by class."""

import torch

from sparsecraft.lab.measures import class_accuracies, worst_class_accuracy


def test_classes_by_hand():
    logits = torch.eye(3)[[0, 0, 1, 1, 2]]
    labels = torch.tensor([0, 0, 0, 1, 1])
    assert class_accuracies(logits, labels) == {0: 2 / 3, 1: 0.5}
    assert worst_class_accuracy(logits, labels) == 0.5
