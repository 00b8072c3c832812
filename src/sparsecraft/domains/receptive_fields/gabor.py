"""Gabor functions fitted to atoms, all of them at once.

A Gabor function is A exp(-(x'^2 / 2 sx^2 + y'^2 / 2 sy^2)) cos(2 pi f x' + psi), with x' and y'
turned and moved. Each atom starts from 8 orientations and 3 frequencies about the centre of its
energy; amplitude and phase enter linearly as a cosine and a sine, so that the best phase of every
start is exact and none has to be tried. The best starts are refined by Levenberg and Marquardt's
method with analytic derivatives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsecraft.domains.receptive_fields.fields import Shape, as_fields, positions

ORIENTATIONS = 8
CYCLES = (0.08, 0.18, 0.32)
"""Cycles per pixel of the starts."""
LOWEST, HIGHEST = 0.01, 0.7
"""Cycles per pixel of a fit; the finest grating on a pixel grid has 0.707, along the diagonal."""
NARROWEST = 0.4
"""Standard deviation of an envelope, in pixels."""
REFINED, STEPS = 6, 60
DAMPING = 1e-2


@dataclass(frozen=True)
class GaborFits:
    """The best Gabor function of each of n atoms; lengths are in pixels, from the patch's centre.

    Args:
        centre: (n, 2), x to the right and y downwards.
        orientation: (n,) radians in [0, pi), the direction across the stripes.
        frequency: (n,) cycles per pixel.
        phase: (n,) radians.
        amplitude: (n,), above 0.
        width: (n, 2), the envelope's standard deviation across and along the stripes.
        explained: (n,), the share of an atom's variance over its pixels that the fit explains.
        functions: (n, pixels), the fits.
    """

    centre: Tensor
    orientation: Tensor
    frequency: Tensor
    phase: Tensor
    amplitude: Tensor
    width: Tensor
    explained: Tensor
    functions: Tensor

    @property
    def cycles(self) -> Tensor:
        """Returns (n, 2): nx = sx f and ny = sy f, the axes of Ringach's plot.

        Reference:
            Ringach, 2002, J. Neurophysiol. 88(1).
        """
        return self.width * self.frequency[:, None]


def fit_gabors(components: Any, shape: Shape | None = None) -> GaborFits:
    """Returns the best Gabor function of each atom.

    Args:
        components: (n, pixels), NumPy or torch.
        shape: (height, width) of the patches; by default a square.

    Raises:
        InvalidValue: If the shapes do not fit.
        NonFinite: For NaN or infinite entries.

    Reference:
        Rentzeperis et al., 2023, arXiv 2301.10002, methods.
    """
    given, shape = as_fields(components, shape)
    atoms = given / given.norm(dim=1, keepdim=True).clamp_min(1e-300)
    grid = _Grid(*positions(shape), longest=float(max(shape)))
    starts = _starts(atoms, grid, shape)
    errors = grid.error(starts, atoms[:, None])
    kept = errors.topk(min(REFINED, errors.shape[1]), largest=False).indices
    found = grid.refine(starts.gather(1, kept[..., None].expand(-1, -1, 8)), atoms[:, None])
    best = grid.error(found, atoms[:, None]).argmin(1)
    return _fits(found[torch.arange(len(atoms)), best], atoms, grid, given)


class _Grid:
    """Gabor functions at fixed pixels.

    Parameters are (..., 8): x0, y0, angle, f, log sx, log sy, and the weights of cosine and sine.
    """

    def __init__(self, x: Tensor, y: Tensor, longest: float) -> None:
        self.x, self.y = x, y
        self.low = torch.tensor(
            [x.min(), y.min(), -math.inf, LOWEST, math.log(NARROWEST), math.log(NARROWEST)]
        ).double()
        self.high = torch.tensor(
            [x.max(), y.max(), math.inf, HIGHEST, math.log(2 * longest), math.log(2 * longest)]
        ).double()

    def parts(self, p: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns x', y', and the envelope times cosine and sine, (..., pixels)."""
        x0, y0, angle, frequency, wide, high = (each[..., None] for each in p[..., :6].unbind(-1))
        dx, dy = self.x - x0, self.y - y0
        across = dx * angle.cos() + dy * angle.sin()
        along = dy * angle.cos() - dx * angle.sin()
        envelope = (-(across / wide.exp()).square() / 2 - (along / high.exp()).square() / 2).exp()
        turn = 2 * math.pi * frequency * across
        return across, along, envelope * turn.cos(), envelope * turn.sin()

    def functions(self, p: Tensor) -> Tensor:
        """Returns (..., pixels)."""
        _, _, cosine, sine = self.parts(p)
        return p[..., 6:7] * cosine + p[..., 7:8] * sine

    def error(self, p: Tensor, atoms: Tensor) -> Tensor:
        """Returns (...,), the squared distance to the atoms."""
        return (atoms - self.functions(p)).square().sum(-1)

    def linear(self, p: Tensor, atoms: Tensor) -> Tensor:
        """Returns p with the best amplitudes of cosine and sine for the rest of it."""
        _, _, cosine, sine = self.parts(p)
        basis = torch.stack([cosine, sine], -1)
        gram = basis.mT @ basis + 1e-9 * torch.eye(2, dtype=basis.dtype)
        best = torch.linalg.solve(gram, basis.mT @ atoms.expand_as(cosine)[..., None])[..., 0]
        return torch.cat([p[..., :6], best], -1)

    def jacobian(self, p: Tensor) -> Tensor:
        """Returns (..., pixels, 8), the derivatives of the functions."""
        across, along, cosine, sine = self.parts(p)
        _, _, angle, frequency, wide, high, c, s = (each[..., None] for each in p.unbind(-1))
        value, turned = c * cosine + s * sine, s * cosine - c * sine
        by_across = -across / (2 * wide).exp() * value + 2 * math.pi * frequency * turned
        by_along = -along / (2 * high).exp() * value
        columns = [
            -angle.cos() * by_across + angle.sin() * by_along,
            -angle.sin() * by_across - angle.cos() * by_along,
            along * by_across - across * by_along,
            2 * math.pi * across * turned,
            (across / wide.exp()).square() * value,
            (along / high.exp()).square() * value,
            cosine,
            sine,
        ]
        return torch.stack(columns, -1)

    def refine(self, p: Tensor, atoms: Tensor) -> Tensor:
        """Returns p after steps of Levenberg and Marquardt that never raise the error."""
        damping = torch.full_like(p[..., 0], DAMPING)
        error = self.error(p, atoms)
        for _ in range(STEPS):
            jacobian = self.jacobian(p)
            gram = jacobian.mT @ jacobian
            slope = jacobian.mT @ (atoms - self.functions(p))[..., None]
            ridge = damping[..., None] * gram.diagonal(dim1=-2, dim2=-1) + 1e-9
            tried = p + torch.linalg.solve(gram + torch.diag_embed(ridge), slope)[..., 0]
            inside = torch.maximum(torch.minimum(tried[..., :6], self.high), self.low)
            tried = self.linear(torch.cat([inside, tried[..., 6:]], -1), atoms)
            now = self.error(tried, atoms)
            better = now < error
            p = torch.where(better[..., None], tried, p)
            error = torch.where(better, now, error)
            damping = torch.where(better, damping / 3, damping * 4).clamp(1e-9, 1e9)
        return p


def _starts(atoms: Tensor, grid: _Grid, shape: Shape) -> Tensor:
    """Returns (n, starts, 8)."""
    energy = atoms.square() / atoms.square().sum(1, keepdim=True).clamp_min(1e-300)
    middle = torch.stack([energy @ grid.x, energy @ grid.y], 1)
    angles = torch.arange(ORIENTATIONS, dtype=torch.float64) * math.pi / ORIENTATIONS
    pairs = torch.cartesian_prod(angles, torch.tensor(CYCLES, dtype=torch.float64))
    count = len(pairs)
    width = torch.full((len(atoms), count, 2), math.log(max(min(shape) / 5, NARROWEST)))
    p = torch.cat(
        [
            middle[:, None].expand(-1, count, -1),
            pairs.expand(len(atoms), -1, -1),
            width.double(),
            torch.zeros(len(atoms), count, 2, dtype=torch.float64),
        ],
        -1,
    )
    return grid.linear(p, atoms[:, None])


def _fits(p: Tensor, unit: Tensor, grid: _Grid, atoms: Tensor) -> GaborFits:
    functions = grid.functions(p)
    spread = (unit - unit.mean(1, keepdim=True)).square().sum(1)
    # An atom without variance has none to explain.
    error = (unit - functions).square().sum(1)
    explained = torch.where(spread > 1e-12, 1 - error / spread.clamp_min(1e-12), 0.0)
    norm = atoms.norm(dim=1)
    orientation = p[:, 2].remainder(math.pi)
    # Just below 0, rounding gives pi itself.
    orientation = orientation.where(orientation < math.pi, 0.0)
    opposite = (p[:, 2] - orientation).cos() < 0
    phase = torch.atan2(-p[:, 7], p[:, 6])
    return GaborFits(
        centre=p[:, :2],
        orientation=orientation,
        frequency=p[:, 3],
        # From the other side a wave runs backwards: x' changes its sign, and so does the phase.
        phase=torch.where(opposite, -phase, phase),
        amplitude=p[:, 6:8].norm(dim=1) * norm,
        width=p[:, 4:6].exp(),
        explained=explained,
        functions=functions * norm[:, None],
    )
