"""Classes of receptive fields, and the summary of a dictionary.

An atom is *silent* if it has no variance; *centre-surround* if rings about its centre explain it
and it hardly prefers an orientation; *grating-like* if a Gabor function explains it whose envelope
covers the patch both ways; *Gabor-like* if another does; and *complex* (curved, cornered, or more
than one piece) otherwise.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue
from sparsecraft.domains.receptive_fields.fields import Shape, as_fields, positions
from sparsecraft.domains.receptive_fields.gabor import GaborFits, fit_gabors
from sparsecraft.domains.receptive_fields.gratings import Tuning, grating_tuning

CLASSES = ("Gabor-like", "grating-like", "centre-surround", "complex", "silent")
LEVEL = 0.6
"""Share of an atom's variance that a description must explain; 0.5 to 0.8 are in use."""
UNTUNED = 0.3
"""Orientation selectivity under which an atom may be centre-surround."""
COVERING = 0.5
"""Envelope's standard deviation, over the patch's side, from which it covers the patch."""


@dataclass(frozen=True)
class ReceptiveFields:
    """What `analyse` found of n atoms.

    Args:
        shape: (height, width) of the patches.
        level: Share of variance that a description must explain.
        gabors: The best Gabor functions.
        tuning: To gratings.
        radial: (n,), the share of variance that rings about the centre explain.
        classes: The class of each atom.
    """

    shape: Shape
    level: float
    gabors: GaborFits
    tuning: Tuning
    radial: Tensor
    classes: tuple[str, ...]

    def counts(self) -> dict[str, int]:
        """Returns class to number of atoms, all classes named."""
        found = Counter(self.classes)
        return {name: found[name] for name in CLASSES}

    def summary(self) -> dict[str, float]:
        """Returns the shares and medians that dictionaries are compared by.

        "Gabor share" is that of atoms which a Gabor function explains to the level; medians are
        over atoms that are not silent.
        """
        alive = torch.tensor([name != "silent" for name in self.classes])
        if not bool(alive.any()):
            return {"Gabor share": 0.0, "silent share": 1.0}
        count = len(self.classes)
        return {
            "Gabor share": float((self.gabors.explained >= self.level).sum()) / count,
            "median Gabor fit": float(self.gabors.explained[alive].median()),
            "median circular variance": float(self.tuning.circular_variance[alive].median()),
            "median selectivity": float(self.tuning.selectivity[alive].median()),
            **{f"{name} share": found / count for name, found in self.counts().items()},
        }

    def __str__(self) -> str:
        counts = ", ".join(f"{found} {name}" for name, found in self.counts().items() if found)
        facts = self.summary()
        if "median circular variance" not in facts:
            return counts
        return (
            f"{counts}; {facts['Gabor share']:.0%} with a Gabor fit of at least {self.level:g}, "
            f"median circular variance {facts['median circular variance']:.2f}"
        )


def analyse(
    components: Any, shape: Shape | None = None, *, level: float = LEVEL, orientations: int = 36
) -> ReceptiveFields:
    """Returns fits, tuning and classes of the atoms of a dictionary.

    Args:
        components: (n, pixels), NumPy or torch.
        shape: (height, width) of the patches; by default a square.
        level: Share of variance that a description must explain, in (0, 1).
        orientations: Of the gratings, over half a turn.

    Raises:
        InvalidValue: If the shapes do not fit or the level is not allowed.
        NonFinite: For NaN or infinite entries.

    Example:
        >>> stripes = torch.tensor([[1.0, 1.0, -1.0, -1.0] * 4])
        >>> found = analyse(stripes, level=0.5)
        >>> found.counts()["silent"], sum(found.counts().values())
        (0, 1)
    """
    if not 0 < level < 1:
        raise InvalidValue(f"level={level!r} is not allowed: give a share between 0 and 1")
    atoms, shape = as_fields(components, shape)
    gabors = fit_gabors(atoms, shape)
    tuning = grating_tuning(atoms, shape, orientations=orientations)
    radial = radial_share(atoms, shape)
    spread = (atoms - atoms.mean(1, keepdim=True)).square().sum(1)
    silent = spread <= 1e-12 * atoms.square().sum(1).clamp_min(1e-300)
    side = torch.tensor([max(shape)], dtype=torch.float64)
    covers = (gabors.width >= COVERING * side).all(1)
    classes = tuple(
        _class(*each)
        for each in zip(
            silent.tolist(),
            ((radial >= level) & (tuning.selectivity < UNTUNED)).tolist(),
            (gabors.explained >= level).tolist(),
            covers.tolist(),
            strict=True,
        )
    )
    return ReceptiveFields(shape, level, gabors, tuning, radial, classes)


def radial_share(components: Any, shape: Shape | None = None) -> Tensor:
    """Returns (n,): the share of variance that the mean of each ring about the centre explains.

    The centre is that of an atom's energy, and rings are one pixel wide.

    Args:
        components: (n, pixels), NumPy or torch.
        shape: (height, width) of the patches; by default a square.
    """
    atoms, shape = as_fields(components, shape)
    x, y = positions(shape)
    energy = atoms.square() / atoms.square().sum(1, keepdim=True).clamp_min(1e-300)
    dx, dy = x - (energy @ x)[:, None], y - (energy @ y)[:, None]
    ring = (dx.square() + dy.square()).sqrt().round().long()
    rings = int(ring.max()) + 1
    sums = torch.zeros(len(atoms), rings, dtype=atoms.dtype).scatter_add_(1, ring, atoms)
    pixels = torch.zeros_like(sums).scatter_add_(1, ring, torch.ones_like(atoms))
    smooth = (sums / pixels.clamp_min(1)).gather(1, ring)
    spread = (atoms - atoms.mean(1, keepdim=True)).square().sum(1)
    left = (atoms - smooth).square().sum(1)
    return torch.where(spread > 0, 1 - left / spread.clamp_min(1e-300), 0.0)


def _class(silent: bool, rings: bool, gabor: bool, covers: bool) -> str:
    if silent:
        return "silent"
    if rings:
        return "centre-surround"
    if gabor:
        return "grating-like" if covers else "Gabor-like"
    return "complex"
