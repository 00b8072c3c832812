"""Adam for an autoencoder whose dictionary may be held to rows of norm one.

The part of the gradient along each row is removed, Adam steps, and the row is scaled back: in this
order Adam's moments never see what the constraint takes away. Implementations that rescale before
the step leave rows that are only nearly unit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsecraft.model.sae.scaling import make_rows_unit

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
        self.adam = torch.optim.Adam(self.parameters, betas=betas, eps=epsilon)

    def gradients(self) -> list[Tensor]:
        """Returns the gradient of each parameter, zeros where a batch did not touch it."""
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]

    def clear(self) -> None:
        """Forgets the gradients of the last step."""
        self.adam.zero_grad(set_to_none=True)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Changes the parameters by one step at a learning rate."""
        if self.unit:
            weight, gradient = self.sae.W_dec, self.sae.W_dec.grad
            if gradient is not None:
                gradient -= (gradient * weight).sum(1, keepdim=True) * weight
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        if self.unit:
            make_rows_unit(self.sae)

    @torch.no_grad()
    def forget(self, latents: Tensor) -> None:
        """Sets the moments of latents (indices) to zero."""
        sae = self.sae
        for parameter in self.parameters:
            state = self.adam.state.get(parameter, {})
            for moment in ("exp_avg", "exp_avg_sq"):
                if moment not in state:
                    continue
                if parameter is sae.W_enc:
                    state[moment][:, latents] = 0
                elif parameter.shape[0] == sae.d_sae:
                    state[moment][latents] = 0

    def state_dict(self) -> dict[str, Any]:
        """Returns the moments."""
        return self.adam.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up moments."""
        self.adam.load_state_dict(state)
