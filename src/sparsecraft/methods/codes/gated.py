"""Gated: whether a latent is on and how large it is are two questions with shared weights.

Rajamanoharan et al. (2024) found that an L1 penalty makes all values too small. Here it acts on the
gate's pre-activations alone, whose positive part must by itself reconstruct the input through a
decoder that is held constant; the values are another scale and bias of the same product, and are
not penalised. The gate's bias is the encoder's.

That auxiliary reconstruction does not move the decoder, as in the paper; an implementation that
lets it do so trains the decoder on codes that are never decoded.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecraft.core import penalties
from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.kinds import CodeStep, Elementwise, Own
from sparsecraft.methods.codes.relu import weighted_l1


@method(
    "gated_sae",
    paper=Paper(
        "Rajamanoharan et al.",
        2024,
        "2404.16014",
        title="Improving Dictionary Learning with Gated Sparse Autoencoders",
    ),
    taxonomy=Taxonomy(
        of="codes",
        when="during training",
        start_to_end="dense to sparse",
        mask="input-dependent",
        criterion="optimisation-based",
        granularity=("unstructured",),
        allocation="learned",
        budget="soft",
        needs=("data", "pretrained model"),
        cost="one training of the dictionary",
        runtime="FLOPs",
    ),
)
@dataclass(frozen=True, kw_only=True)
class Gated(Elementwise):
    """Gates each latent by the sign of its pre-activation, and sizes it by a scale and bias.

    Args:
        l1: What a unit of the gates' L1 norm, weighted by decoder norms, adds to the loss; reached
            at the end of the warm-up.

    Example:
        >>> own = Own(torch.tensor([-1.0]), Gated().initial(1, seed=0)[0])
        >>> Gated().apply(torch.tensor([[0.5], [-0.5]]), own).tolist()  # the gate's bias is undone
        [[1.5], [0.0]]

    Reference:
        Rajamanoharan et al., 2024, arXiv 2404.16014, eqs. 6 to 8.
    """

    l1: float = 5.0

    def __post_init__(self) -> None:
        penalties.check_strength(self.l1)

    def initial(self, d_sae: int, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns the logarithms of the scales, and the biases, of the values: all zero."""
        return {"log_scale": torch.zeros(d_sae), "magnitude_bias": torch.zeros(d_sae)}, {}

    def restart(self, own: Own, latents: Tensor) -> None:
        """Sets scales and biases of the values to the first ones."""
        for parameter in own.parameters.values():
            parameter[latents] = 0.0

    def apply(self, u: Tensor, own: Own) -> Tensor:
        """Returns 1(u > 0) max((u - b_enc) exp(r) + b_magnitude, 0)  (eqs. 6 and 7)."""
        scale = own.parameters["log_scale"].exp().to(u.dtype)
        bias = own.parameters["magnitude_bias"].to(u.dtype)
        magnitude = (u - own.bias.to(u.dtype)) * scale + bias
        return magnitude.relu() * (u > 0)

    def losses(self, step: CodeStep, own: Own) -> dict[str, Tensor]:
        """Returns the penalty "l1" of the gates, and their "gate_reconstruction"  (eq. 8)."""
        gates = step.u.relu()
        error = (step.target - step.frozen_decode(gates)).square().sum(1).mean()
        return {
            "l1": self.l1 * step.warmth * weighted_l1(gates, step.decoder),
            "gate_reconstruction": error,
        }
