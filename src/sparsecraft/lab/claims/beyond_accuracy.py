"""What papers 03 and 17 claim of sparse networks beyond accuracy, measured on digits.

Data of another kind are patches of the two photographs that come with scikit-learn, and the test
images with their pixels in another order: the first differ from digits in every way, the second
have exactly their grey values. Disturbances are the same for every network.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecraft.core.errors import MissingDependency
from sparsecraft.core.seeds import generator
from sparsecraft.lab.claims.digits import Part
from sparsecraft.lab.measures import (
    corrupt,
    expected_calibration_error,
    fgsm,
    negative_log_likelihood,
    out_of_distribution_auc,
    worst_class_accuracy,
)

DISTURBANCES = ("noise", "blur", "contrast", "shift", "occlusion")
SEVERITY = 3
EPSILON = 8 / 255
PATCHES = 1000
SIDE = 8
# Photographs are first made smaller, so that a patch shows more than one surface.
COARSER = 4


def beyond_accuracy(model: nn.Module, test: Part) -> dict[str, float]:
    """Returns calibration, detection of other data and accuracy under disturbance, by name.

    Args:
        model: Gives logits of images (n, 1, 8, 8); left in evaluation mode.
        test: Images that were neither trained nor chosen on.
    """
    model.eval()
    logits = _logits(model, test.images)
    corrupted = [
        _accuracy(model, Part(corrupt(test.images, kind, SEVERITY), test.labels))
        for kind in DISTURBANCES
    ]
    attacked = Part(fgsm(model, test.images, test.labels, EPSILON), test.labels)
    return {
        "ECE": expected_calibration_error(logits, test.labels),
        "NLL": negative_log_likelihood(logits, test.labels),
        "worst class": worst_class_accuracy(logits, test.labels),
        "OOD AUC, photographs": out_of_distribution_auc(logits, _logits(model, photographs())),
        "OOD AUC, permuted": out_of_distribution_auc(logits, _logits(model, permuted(test.images))),
        "corrupted accuracy": sum(corrupted) / len(corrupted),
        "FGSM accuracy": _accuracy(model, attacked),
    }


def permuted(images: Tensor) -> Tensor:
    """Returns the images with their pixels in another order, one for all."""
    order = torch.randperm(images[0].numel(), generator=generator(0, "permuted pixels"))
    return images.flatten(1)[:, order].view_as(images)


@cache
def photographs() -> Tensor:
    """Returns grey patches of photographs, (patches, 1, 8, 8) in [0, 1].

    Raises:
        MissingDependency: If scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise MissingDependency("scikit-learn", "lab", "The photographs") from error
    cut = []
    for image in datasets.load_sample_images().images:
        grey = torch.tensor(image, dtype=torch.float32).mean(-1)[None, None] / 255
        cut.append(F.unfold(F.avg_pool2d(grey, COARSER), SIDE, stride=SIDE // 2)[0].T)
    patches = torch.cat(cut)
    chosen = torch.randperm(len(patches), generator=generator(0, "photographs"))[:PATCHES]
    return patches[chosen].view(-1, 1, SIDE, SIDE)


@torch.no_grad()
def _logits(model: nn.Module, images: Tensor) -> Tensor:
    return model(images)


def _accuracy(model: nn.Module, data: Part) -> float:
    right = _logits(model, data.images).argmax(1) == data.labels
    return float(right.double().mean())
