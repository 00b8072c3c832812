"""One call for what a classifier is worth on clean and on noisy images, and how calibrated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.lab.measures.calibration import (
    BINS,
    expected_calibration_error,
    negative_log_likelihood,
)
from sparsecraft.lab.measures.corruptions import corrupt

NOISES = ("noise", "impulse", "shot")
"""The three kinds of noise of paper 05: Gaussian, impulse and shot."""


@dataclass(frozen=True)
class Robustness:
    """The figures of one classifier.

    Args:
        accuracy: On the clean images.
        ece: Expected calibration error on them, over all of them at once.
        nll: Mean negative log-likelihood on them, in nats.
        noisy: Kind of noise to accuracy under it.
    """

    accuracy: float
    ece: float
    nll: float
    noisy: Mapping[str, float]

    def to_json(self) -> dict[str, float]:
        """Returns metric to value."""
        under = {f"accuracy under {kind}": value for kind, value in self.noisy.items()}
        return {"accuracy": self.accuracy, "ECE": self.ece, "NLL": self.nll, **under}


@torch.no_grad()
def evaluate_robustness(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    noises: Sequence[str] = NOISES,
    severity: int = 3,
    ece_bins: int = BINS,
    seed: int = 0,
    batch_size: int = 512,
) -> Robustness:
    """Returns accuracy, calibration and accuracy under noise, in evaluation mode.

    The disturbances depend on the seed and the images alone, so that all models see the same ones.

    Args:
        model: Gives logits (n, classes) of images, or an output that has them; its modes are left
            as they were.
        images: (n, channels, height, width) in [0, 1]; the model does its own normalisation.
        labels: (n,) class indices, clean ones.
        noises: Kinds of `CORRUPTIONS`.
        severity: From 1 to 5.
        ece_bins: Equally wide bins of the confidence.
        seed: Of the noise.
        batch_size: Images that the model sees at once.

    Raises:
        InvalidValue: If there is no image, or something is out of range.
        UnknownName: For a kind of noise that does not exist.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> found = evaluate_robustness(net, torch.rand(8, 1, 2, 2), torch.arange(8) % 2)
        >>> sorted(found.to_json())[:2], list(found.noisy)
        (['ECE', 'NLL'], ['noise', 'impulse', 'shot'])
    """
    if batch_size < 1 or not len(images):
        raise InvalidValue(
            f"{len(images)} images and batch_size={batch_size}: give at least 1 of each"
        )
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        clean = _logits(model, images, batch_size)
        noisy = {
            kind: _accuracy(
                _logits(model, corrupt(images, kind, severity, seed), batch_size), labels
            )
            for kind in noises
        }
    finally:
        for module, training in modes.items():
            module.training = training
    return Robustness(
        _accuracy(clean, labels),
        expected_calibration_error(clean, labels, ece_bins),
        negative_log_likelihood(clean, labels),
        noisy,
    )


def _logits(model: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    outputs = [model(part) for part in images.split(batch_size)]
    return torch.cat([out if isinstance(out, Tensor) else out.logits for out in outputs])


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).double().mean())
