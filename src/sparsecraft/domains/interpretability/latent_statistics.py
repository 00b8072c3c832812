"""How often and how strongly latents fire, and how much alike their directions are.

A latent fires where its code is not zero, of either sign. Whether a latent is alive depends on how
many tokens were looked at, so that number goes with every share of alive latents.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparsecraft.core import seeds
from sparsecraft.core.code import Code

ALL_COMPARED = 2**15
DRAWN = 2048
"""Latents looked at where there are more than `ALL_COMPARED`: all pairs would take minutes."""
ROWS_AT_ONCE = 256
DECADES = (-7, 0)
"""Powers of ten between which the histogram of densities has bins of half a decade."""


@dataclass
class LatentStatistics:
    """Running counts over the codes of a store.

    Args:
        d_sae: Latents.
    """

    d_sae: int
    rows: int = 0
    active: int = 0
    magnitude: float = 0.0
    fired: Tensor = field(init=False)
    """int64 (d_sae,), rows in which each latent is not zero."""
    contexts: Tensor | None = None
    """int64 (d_sae,), contexts in which each latent is not zero somewhere."""
    _last: Tensor | None = None

    def __post_init__(self) -> None:
        self.fired = torch.zeros(self.d_sae, dtype=torch.int64)

    def add(self, code: Code, contexts: Tensor | None) -> None:
        """Takes codes into account.

        Args:
            code: Of rows in the order of the store.
            contexts: int64 (rows,), the context of each row, or None without a text.
        """
        code = code.to("cpu")  # where the store's contexts are
        there = code.values != 0
        self.rows += len(code)
        self.active += int(there.sum())
        self.magnitude += float(code.values.detach().double().abs().sum())
        self.fired += code.fired()
        if contexts is not None:
            self._count_contexts(code, there, contexts)

    @property
    def l0(self) -> float:
        """Mean number of latents that are not zero in a row."""
        return self.active / self.rows

    @property
    def l1(self) -> float:
        """Mean of the sum of magnitudes of a row."""
        return self.magnitude / self.rows

    @property
    def density(self) -> Tensor:
        """(d_sae,) float64, the share of rows in which each latent fires."""
        return self.fired.double() / self.rows

    @property
    def alive(self) -> float:
        """Share of latents that fired at all."""
        return float((self.fired > 0).double().mean())

    def denser_than(self, share: float) -> float:
        """Returns the share of latents that fire in more than this share of rows."""
        return float((self.density > share).double().mean())

    def histogram(self) -> dict[str, list[float]]:
        """Returns the lower edges of bins (log10 of the density) and the latents in each.

        Latents that never fire are in none; the lowest bin takes all that is below it.
        """
        low, high = DECADES
        logs = self.density[self.fired > 0].log10()
        place = ((logs - low) * 2).floor().long().clamp(0, 2 * (high - low) - 1)
        counts = torch.bincount(place, minlength=2 * (high - low))
        edges = [low + step / 2 for step in range(2 * (high - low))]
        return {"log10_density_from": edges, "latents": [float(count) for count in counts]}

    def in_a_row(self) -> float | None:
        """Returns how often a latent fires in a context in which it fires, mean over the alive."""
        if self.contexts is None or not bool((self.fired > 0).any()):
            return None
        alive = self.fired > 0
        return float((self.fired[alive].double() / self.contexts[alive].double()).mean())

    def _count_contexts(self, code: Code, there: Tensor, contexts: Tensor) -> None:
        """Counts each (context, latent) once; a context may begin in one batch and end in another.

        Rows come in order, so only the last context of the batch before can go on.
        """
        if self.contexts is None:
            self.contexts = torch.zeros(self.d_sae, dtype=torch.int64)
        pairs = torch.unique(contexts[code.rows()[there]] * self.d_sae + code.columns[there])
        if self._last is not None:
            pairs = pairs[~torch.isin(pairs, self._last)]
        self.contexts += torch.bincount(pairs % self.d_sae, minlength=self.d_sae)
        last = pairs[pairs // self.d_sae == contexts[-1]]
        same = self._last is not None and len(self._last) and self._goes_on(contexts)
        self._last = torch.cat([self._last, last]) if same else last  # type: ignore[list-item]

    def _goes_on(self, contexts: Tensor) -> bool:
        before = self._last
        return before is not None and int(before[0] // self.d_sae) == int(contexts[-1])


@dataclass(frozen=True)
class Alikeness:
    """The largest |cosine| of a direction with any other.

    Args:
        mean: Over the latents that were looked at.
        largest: Over the latents that were looked at; each is compared with all.
        latents: How many were looked at.
        among: How many there are.
    """

    mean: float
    largest: float
    latents: int
    among: int


def alikeness(vectors: Tensor, *, seed: int = 0) -> Alikeness:
    """Returns how near directions (latents, d) come to each other.

    All are looked at up to 32,768; of more, 2,048 are drawn, and each is compared with all.
    """
    norms = vectors.norm(dim=1, keepdim=True)
    unit = vectors / norms.clamp_min(torch.finfo(vectors.dtype).tiny)
    if len(unit) <= ALL_COMPARED:
        nearest = _nearest_of_all(unit)
    else:
        draw = seeds.generator(seed, "alikeness")
        nearest = _nearest_of(unit, torch.randperm(len(unit), generator=draw)[:DRAWN])
    return Alikeness(float(nearest.mean()), float(nearest.max()), len(nearest), len(unit))


def _nearest_of_all(unit: Tensor) -> Tensor:
    """Returns (latents,) largest |cosine| with another, each pair computed once."""
    nearest = unit.new_zeros(len(unit))
    for first in range(0, len(unit), ROWS_AT_ONCE):
        part = slice(first, first + ROWS_AT_ONCE)
        cosines = (unit[part] @ unit[first:].T).abs().fill_diagonal_(0.0)
        nearest[part] = nearest[part].maximum(cosines.amax(1))
        nearest[first:] = nearest[first:].maximum(cosines.amax(0))
    return nearest


def _nearest_of(unit: Tensor, chosen: Tensor) -> Tensor:
    """Returns (chosen,) largest |cosine| of some with any other."""
    found = []
    for part in chosen.split(ROWS_AT_ONCE):
        cosines = (unit[part] @ unit.T).abs()
        cosines[torch.arange(len(part)), part] = 0.0
        found.append(cosines.amax(1))
    return torch.cat(found)
