"""Patches of natural images as the primary visual cortex might see them: whitened, without mean.

The spectrum of natural images falls with frequency, so that plain patches are mostly smooth shades.
A filter that rises with frequency and cuts off what a pixel grid cannot hold flattens it
(Olshausen and Field, 1997). One factor then brings all images together to a set variance; patches
lose their mean, and are not scaled one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsecraft.core.errors import CheckpointError, InvalidValue, NonFinite, SparsityError
from sparsecraft.core.seeds import generator

VAN_HATEREN = (1024, 1536)


@dataclass(frozen=True, kw_only=True)
class Whitening:
    """A filter |f| exp(-(|f| / f0)^steepness), and one factor for all images.

    Frequencies are in cycles per image along each side, and f0 is `cutoff` times the height, as in
    the paper; only for square images is the filter round in pixels.

    Args:
        cutoff: Of the height.
        steepness: Of the cut.
        variance: That the images have on average after it, over their pixels.
        scale: The factor; None until fitted.

    Reference:
        Olshausen and Field, 1997, Vision Research 37(23), section 3; Rentzeperis et al., 2023,
        arXiv 2301.10002, methods.
    """

    cutoff: float = 0.4
    steepness: float = 4.0
    variance: float = 0.1
    scale: float | None = None

    def __post_init__(self) -> None:
        for name in ("cutoff", "steepness", "variance"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InvalidValue(f"{name}={getattr(self, name)!r} is not allowed: give it > 0")

    def fit(self, images: Sequence[Tensor]) -> Whitening:
        """Returns the whitening with the factor that these images need.

        Args:
            images: Each (height, width), as `standardise` returns them.

        Raises:
            InvalidValue: If there is no image, or all are flat.
        """
        if not images:
            raise InvalidValue("no image was given to fit the whitening to")
        variances = [self._filtered(image).var(correction=0) for image in images]
        mean = float(torch.stack(variances).double().mean())
        if mean == 0:
            raise InvalidValue("the images are flat, so there is no variance to scale")
        return replace(self, scale=(self.variance / mean) ** 0.5)

    def __call__(self, image: Tensor) -> Tensor:
        """Returns one image (height, width), filtered and scaled.

        Raises:
            SparsityError: If the whitening was not fitted.
        """
        if self.scale is None:
            raise SparsityError("the whitening has no scale yet: call fit(images) first")
        return self._filtered(image) * self.scale

    def to_json(self) -> dict[str, Any]:
        """Returns the settings and the factor as plain values, for `Whitening(**values)`."""
        names = ("cutoff", "steepness", "variance", "scale")
        return {name: getattr(self, name) for name in names}

    def _filtered(self, image: Tensor) -> Tensor:
        image = _checked(image)
        height, width = image.shape
        down, across = (torch.fft.fftfreq(n, 1 / n, dtype=torch.float64) for n in (height, width))
        frequency = (down[:, None].square() + across.square()).sqrt()
        gain = frequency * torch.exp(-((frequency / (self.cutoff * height)) ** self.steepness))
        return torch.fft.ifft2(torch.fft.fft2(image.double()) * gain).real.to(image.dtype)


def standardise(image: Tensor) -> Tensor:
    """Returns an image (height, width) brought to [0, 1], then to mean 0 and deviation 1.

    Raises:
        InvalidValue: If it is not a flat image of more than one value.
        NonFinite: If it has NaN or infinite values.

    Example:
        >>> standardise(torch.tensor([[0.0, 2.0]]))
        tensor([[-1.,  1.]])
    """
    image = _checked(image)
    low, high = image.min(), image.max()
    if low == high:
        raise InvalidValue("an image of one grey value everywhere cannot be standardised")
    unit = (image - low) / (high - low)
    return (unit - unit.mean()) / unit.std(correction=0)


def patches(
    images: Sequence[Tensor], size: int, count: int, *, seed: int = 0, centre: bool = True
) -> Tensor:
    """Returns (count, size * size) patches from random places, row by row, each without its mean.

    Args:
        images: Each (height, width).
        size: Pixels of a side.
        count: Of patches.
        seed: Of the places.
        centre: Whether a patch loses its mean.

    Raises:
        InvalidValue: If there is no image, or one is smaller than a patch.

    Example:
        >>> patches([torch.arange(16.0).view(4, 4)], size=4, count=1).sum().item()
        0.0
    """
    if not images or size < 1 or count < 1:
        raise InvalidValue(
            f"{len(images)} images, size={size} and count={count} were given: give at least one of "
            "each"
        )
    small = [tuple(image.shape) for image in images if min(image.shape) < size]
    if small:
        raise InvalidValue(f"an image of {small[0]} has no patch of {size} by {size}")
    stream = generator(seed, "patches")
    draw = torch.rand(count, 3, generator=stream, dtype=torch.float64)
    rows = []
    for which, down, across in draw.tolist():
        image = images[int(which * len(images))]
        top = int(down * (image.shape[0] - size + 1))
        left = int(across * (image.shape[1] - size + 1))
        rows.append(image[top : top + size, left : left + size].reshape(-1))
    found = torch.stack(rows)
    return found - found.mean(1, keepdim=True) if centre else found


def read_van_hateren(path: Path | str) -> Tensor:
    """Returns one image of van Hateren's collection (.imc or .iml), float32 (1024, 1536).

    Raises:
        CheckpointError: If the file is missing or has another size.
    """
    try:
        raw = np.fromfile(Path(path), dtype=">u2")
    except OSError as error:
        raise CheckpointError(f"could not read {path}: {error}") from error
    if raw.size != VAN_HATEREN[0] * VAN_HATEREN[1]:
        raise CheckpointError(
            f"{path} holds {raw.size} numbers of 16 bits; an image of van Hateren's has "
            f"{VAN_HATEREN[0]} times {VAN_HATEREN[1]}"
        )
    return torch.from_numpy(raw.astype(np.float32)).reshape(VAN_HATEREN)


def _checked(image: Tensor) -> Tensor:
    if image.dim() != 2 or not image.is_floating_point():
        raise InvalidValue(
            f"an image of shape {tuple(image.shape)} and type {image.dtype} was given: give a grey "
            "one, (height, width), in a floating type"
        )
    if not bool(torch.isfinite(image).all()):
        raise NonFinite("the image has NaN or infinite values")
    return image
