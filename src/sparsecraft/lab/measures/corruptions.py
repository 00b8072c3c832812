"""Images that are disturbed, at random or on purpose, and are still to be recognised.

The kinds and the five severities follow the benchmark of Hendrycks and Dietterich in spirit; its
own severities are made for photographs, these for small grey images as well.

Reference:
    Hendrycks, Dietterich, 2019, arXiv 1903.12261; Goodfellow et al., 2014, arXiv 1412.6572, for the
    fast gradient sign method (FGSM).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.seeds import generator

SEVERITIES = (1, 2, 3, 4, 5)


def corrupt(images: Tensor, kind: str, severity: int = 3, seed: int = 0) -> Tensor:
    """Returns the images disturbed, in [0, 1].

    Args:
        images: (n, channels, height, width) in [0, 1].
        kind: One of `CORRUPTIONS`.
        severity: From 1 to 5.
        seed: Of what is drawn.

    Raises:
        UnknownName: If there is no such kind.
        InvalidValue: If the severity is not from 1 to 5, or the images are not in [0, 1].
    """
    if kind not in CORRUPTIONS:
        raise UnknownName("corruption", kind, CORRUPTIONS)
    if severity not in SEVERITIES:
        raise InvalidValue(f"severity={severity!r} is not allowed: give a whole number from 1 to 5")
    _check_images(images)
    return CORRUPTIONS[kind](images, severity, generator(seed, "corruption", kind)).clamp(0, 1)


@torch.enable_grad()
def fgsm(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """Returns the images moved by epsilon in every pixel so that the loss grows, in [0, 1].

    Args:
        model: Gives logits (n, classes), or an output that has them; it is used in evaluation mode
            and left as it was, without gradients.
        images: (n, channels, height, width) in [0, 1].
        labels: (n,) class indices.
        epsilon: Largest change of a pixel; 8 / 255 in paper 03.
    """
    _check_images(images)
    if epsilon < 0:
        raise InvalidValue(f"epsilon={epsilon} is not allowed: it is a distance, at least 0")
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        moved = images.detach().clone().requires_grad_()
        output = model(moved)
        logits = output if isinstance(output, Tensor) else output.logits
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels), moved)
    finally:
        for module, training in modes.items():
            module.training = training
    return (images + epsilon * gradient.sign()).clamp(0, 1).detach()


def _check_images(images: Tensor) -> None:
    if images.dim() != 4 or not images.is_floating_point():
        raise InvalidValue(
            f"images are {images.dtype} of shape {tuple(images.shape)}: give floats "
            "(n, channels, height, width)"
        )
    if images.numel() and not (float(images.min()) >= 0 and float(images.max()) <= 1):
        raise InvalidValue(
            f"images lie in [{float(images.min()):g}, {float(images.max()):g}]: scale them to "
            "[0, 1], and let the model do its normalisation"
        )


def _noise(images: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Adds Gaussian noise of standard deviation 0.08 a severity."""
    noise = torch.randn(images.shape, generator=draw).to(images)
    return images + 0.08 * severity * noise


def _impulse(images: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Makes 5 % of the pixels a severity black or white, with even chances."""
    drawn = torch.rand(images.shape, generator=draw).to(images.device)
    share = 0.05 * severity
    salted = images.masked_fill(drawn < share / 2, 1)
    return salted.masked_fill((drawn >= share / 2) & (drawn < share), 0)


def _shot(images: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Counts photons: a white pixel gives 48, 24, 12, 6 or 3 of them on average, a black one none.

    The counts are Poisson, so that the noise grows with the brightness.
    """
    photons = 96 / 2**severity
    counts = torch.poisson((images * photons).float().cpu(), generator=draw)
    return counts.to(images) / photons


def _blur(images: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Blurs by a Gaussian of standard deviation 0.3 pixels a severity; the border repeats."""
    deviation, reach = 0.3 * severity, 1 + severity
    offsets = torch.arange(-reach, reach + 1).to(images)
    kernel = torch.exp(-offsets.square() / (2 * deviation**2))
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    across = F.conv2d(padded, kernel, groups=images.shape[1])
    return F.conv2d(across, kernel.transpose(2, 3), groups=images.shape[1])


def _contrast(images: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Draws every image towards its mean by 15 % a severity."""
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (1 - 0.15 * severity) * (images - mean)


def _shift(images: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Moves each image its own way, by up to 5 % of its size a severity, and 1 pixel at least."""
    height, width = images.shape[-2:]
    reach = [max(1, round(0.05 * severity * size)) for size in (height, width)]
    shifts = [torch.randint(-r, r + 1, (len(images),), generator=draw) for r in reach]
    padded = F.pad(images, (reach[1], reach[1], reach[0], reach[0]))
    rows = (shifts[0] + reach[0]).view(-1, 1) + torch.arange(height)
    columns = (shifts[1] + reach[1]).view(-1, 1) + torch.arange(width)
    number = torch.arange(len(images)).view(-1, 1, 1)
    return padded.movedim(1, -1)[number, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def _occlusion(images: Tensor, severity: int, draw: torch.Generator) -> Tensor:
    """Blackens a rectangle of each image, of 10 % of each side a severity, 1 pixel at least."""
    height, width = images.shape[-2:]
    hidden = torch.ones(len(images), 1, height, width, dtype=torch.bool)
    for axis, size in ((2, height), (3, width)):
        length = max(1, round(0.1 * severity * size))
        start = torch.randint(0, size - length + 1, (len(images), 1, 1, 1), generator=draw)
        place = torch.arange(size).view(-1, 1) if axis == 2 else torch.arange(size)
        hidden &= (place >= start) & (place < start + length)
    return images.masked_fill(hidden.to(images.device), 0)


CORRUPTIONS: Mapping[str, Callable[[Tensor, int, torch.Generator], Tensor]] = {
    "noise": _noise,
    "impulse": _impulse,
    "shot": _shot,
    "blur": _blur,
    "contrast": _contrast,
    "shift": _shift,
    "occlusion": _occlusion,
}
