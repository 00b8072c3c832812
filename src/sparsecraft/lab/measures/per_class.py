"""Accuracy class by class: what a mean over classes can hide."""

from __future__ import annotations

from torch import Tensor

from sparsecraft.lab.measures.calibration import check_logits


def class_accuracies(logits: Tensor, labels: Tensor) -> dict[int, float]:
    """Returns the accuracy on each class that has an example, by class index.

    Args:
        logits: (n, classes).
        labels: (n,) class indices.

    Example:
        >>> import torch
        >>> class_accuracies(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]))
        {0: 1.0, 1: 0.0}
    """
    check_logits(logits, labels)
    right = logits.argmax(1) == labels
    found = labels.unique(sorted=True)
    return {int(each): float(right[labels == each].double().mean()) for each in found}


def worst_class_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Returns the accuracy on the class where it is lowest."""
    return min(class_accuracies(logits, labels).values())
