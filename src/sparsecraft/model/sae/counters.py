"""How long each latent has been silent, counted in tokens and over all ranks.

A running share of rows never falls to zero by itself. What fires less than once in the batches that
it averages over cannot be measured by it, so after as many silent batches it is set to zero, and a
dead latent is told from a rare one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsecraft.core.code import Code
from sparsecraft.core.code_thresholds import move_towards, window
from sparsecraft.model.ranks import sum_over_ranks_, world_size


class FiringCounter:
    """Tokens since each latent last fired; a signed latent fires where it is not zero.

    Args:
        latents: How many.
        device: Where they are counted.
        density_momentum: Of the running share of rows in which each latent fires, in [0, 1); None:
            it is not kept. It is 0 for what was silent for 1 / (1 - momentum) batches.
    """

    def __init__(
        self,
        latents: int,
        device: torch.device | str = "cpu",
        density_momentum: float | None = None,
    ) -> None:
        self.density_momentum = density_momentum
        self.density: Tensor | None = None
        """float32 (latents,): the running share of all ranks' rows, NaN before the first batch."""
        if density_momentum is not None:
            self.density = torch.full((latents,), torch.nan, device=device)
        self.silent = torch.zeros(latents, dtype=torch.int64, device=device)
        """int64 (latents,): tokens that all ranks read since a latent fired."""
        self.fired = torch.zeros(latents, dtype=torch.int64, device=device)
        """int64 (latents,): tokens at which a latent fired, ever."""

    def add(self, z: Tensor | Code) -> None:
        """Counts a batch, of which every rank has one of the same size."""
        self.add_counts(z.fired() if isinstance(z, Code) else (z.detach() != 0).sum(0), len(z))

    def add_counts(self, counts: Tensor, rows: int) -> None:
        """Counts a batch by its counts.

        Args:
            counts: int64 (latents,), at how many rows of this rank each fired; summed in place.
            rows: Of this rank; every rank has as many.
        """
        rows *= world_size()
        sum_over_ranks_(counts)
        self.fired += counts
        self.silent += rows
        self.silent[counts > 0] = 0
        if self.density is not None and self.density_momentum is not None:
            move_towards(self.density, counts / rows, self.density_momentum)
            self.density[self.silent >= window(self.density_momentum) * rows] = 0.0

    def dead(self, after: int) -> Tensor:
        """Returns bool (latents,): silent for at least `after` tokens."""
        return self.silent >= after

    def reset(self, latents: Tensor) -> None:
        """Takes latents (indices) as just fired."""
        self.silent[latents] = 0

    def state_dict(self) -> dict[str, Any]:
        """Returns the counts."""
        kept = {"silent": self.silent.clone(), "fired": self.fired.clone()}
        return kept if self.density is None else {**kept, "density": self.density.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up counts."""
        self.silent.copy_(state["silent"])
        self.fired.copy_(state["fired"])
        if self.density is not None:
            self.density.copy_(state["density"])
