"""A loss that brings back latents which fire too seldom, before they are dead.

Ayonrinde (2024) compares how often each latent fires with what Zipf's law expects of its rank, and
lets the under-used ones reconstruct the residual, as AuxK does with the dead ones. The exact form
is not published; here a latent's pre-activation is multiplied with its under-use
u = clip(1 - density / expected, 0, 1), both in the ranking and in the value. A dead latent has
u = 1, so that AuxK is the case in which u is 1 for dead latents and 0 for all others; dead is what
the training calls so, or what did not fire once while its density was averaged. The law is fitted
to the others alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sparsecraft.core.code_thresholds import check_momentum
from sparsecraft.core.errors import UnknownName
from sparsecraft.core.zipf import FEWEST_RANKS, ZipfBudget, ranks_of, under_use
from sparsecraft.model.sae.auxiliary import AuxiliaryStep, AuxK

Weighting = Literal["soft", "hard"]
WEIGHTINGS: tuple[Weighting, ...] = get_args(Weighting)


@dataclass(frozen=True, kw_only=True)
class AuxZipf(AuxK):
    """The k strongest under-used latents of each row reconstruct its residual.

    Args:
        coefficient: Weight of the loss.
        k: Under-used latents of a row; None: the power of two nearest to d_out / 2.
        normalise: What the squared error is divided by; see `AuxK`.
        detach_residual: Whether the residual is held constant.
        rectify: Whether only positive pre-activations are decoded; see `AuxK`.
        weighting: "soft" weighs by the under-use; "hard" gives 1 to latents that fire less than
            half as often as expected, and 0 to the others.
        density_momentum: Of the running density of each latent, in [0, 1); what is silent for
            1 / (1 - momentum) batches counts as dead.

    Reference:
        Ayonrinde, 2024, arXiv 2411.02124, aux_zipf_loss.
    """

    weighting: Weighting = "soft"
    density_momentum: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        check_momentum("density_momentum", self.density_momentum)
        if self.weighting not in WEIGHTINGS:
            raise UnknownName("weighting", str(self.weighting), WEIGHTINGS)

    def loss(self, step: AuxiliaryStep) -> Tensor | None:
        """Returns the loss, or None before the first batch and where no latent is under-used."""
        if step.density is None or bool(torch.isnan(step.density).any()):
            return None
        living = step.density.masked_fill(step.dead, 0.0)
        return self.weighted_loss(step, self.weights(living).to(step.inner))

    def weights(self, density: Tensor) -> Tensor:
        """Returns (d_sae,) the weight of each latent, in [0, 1].

        Args:
            density: (d_sae,), the share of rows in which each latent fires; 0 for the dead.
        """
        # No law can be fitted to so few: only the dead are brought back.
        if int((density > 0).sum()) < FEWEST_RANKS:
            return (density == 0).to(density)
        law = ZipfBudget.fit(density)
        expected = law.densities(len(density), float(density.double().sum()))
        use = under_use(density, expected.to(density)[ranks_of(density)])
        return use if self.weighting == "soft" else (use > 0.5).to(use)
