"""The optimiser of an autoencoder: `DictionaryAdam` over what it trains, its moments by latent.

The part of the decoder's gradient along each row is removed, Adam steps, and the row is scaled back
to norm one: in this order Adam's moments never see what the constraint takes away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsecraft.model.sae.optimiser import DictionaryAdam

if TYPE_CHECKING:
    from sparsecraft.model.sae.autoencoder import SparseAutoencoder


class ProjectedAdam:
    """Adam over all that an autoencoder trains.

    Args:
        sae: What is trained.
        unit: Whether rows of the decoder keep norm one.
        betas: Of Adam.
        epsilon: Of Adam.
    """

    def __init__(
        self, sae: SparseAutoencoder, *, unit: bool, betas: tuple[float, float], epsilon: float
    ) -> None:
        self.sae, self.unit = sae, unit
        self.parameters = [p for p in sae.parameters() if p.requires_grad]
        others = [p for p in self.parameters if p is not sae.W_dec]
        groups: list[dict[str, Any]] = [
            {"params": [sae.W_dec], "unit_rows": unit},
            {"params": others},
        ]
        self.adam = DictionaryAdam(groups, betas=betas, eps=epsilon)

    def gradients(self) -> list[Tensor]:
        """Returns the gradient of each parameter, zeros where a batch did not touch it."""
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]

    def clear(self) -> None:
        """Forgets the gradients of the last step."""
        self.adam.zero_grad(set_to_none=True)

    def step(self, rate: float, scale: float = 1.0) -> None:
        """Changes the parameters by one step.

        Args:
            rate: Learning rate.
            scale: What gradients are multiplied with.
        """
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step(scale=scale)

    @torch.no_grad()
    def forget(self, latents: Tensor) -> None:
        """Sets the moments of latents (indices) to zero."""
        for parameter, state in self.adam.state.items():
            for moment in ("exp_avg", "exp_avg_sq"):
                if parameter is self.sae.W_enc:
                    state[moment][:, latents] = 0
                elif parameter is self.sae.b_dec:
                    continue  # its entries are no latents, though they may be as many
                elif parameter is self.sae.W_dec or parameter.shape == (self.sae.d_sae,):
                    state[moment][latents] = 0

    def state_dict(self) -> dict[str, Any]:
        """Returns the moments."""
        return self.adam.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up moments."""
        self.adam.load_state_dict(state)
