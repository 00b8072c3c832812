"""Attribution dictionary learning: an L1 autoencoder that looks at what latents do to the loss.

To the reconstruction error and the L1 norm two first-order effects on a metric of the model are
added, in terms of its gradient g at the activation (Olah et al., 2024): the sum of the effects of
all latents, |z_j <d_j, g>|, which asks for few latents that matter, and the effect of what is left
out, |<x - x_hat, g>|. Makelov et al. (2024) compare it with other autoencoders.

One departure: gradients are brought to a mean norm of the root of their width over each batch, so
that a weight means the same for every model, layer and metric. `normalize_grad=False` leaves them
as they are, as Makelov et al. do, whose weights are 1000. Codes are those of the ReLU, so a trained
autoencoder needs no gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sparsecraft.core.attribution import attribution_sum, check_gradient, unexplained_effect
from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.kinds import CodeStep, Own
from sparsecraft.methods.codes.relu import ReLU


@method(
    "attribution_sae",
    paper=Paper(
        "Olah et al.",
        2024,
        None,
        title="Circuits Updates, April 2024: Open Problem: Attribution Dictionary Learning",
    ),
    taxonomy=Taxonomy(
        of="codes",
        when="during training",
        start_to_end="dense to sparse",
        mask="input-dependent",
        criterion="gradient",
        granularity=("unstructured",),
        allocation="learned",
        budget="soft",
        needs=("data", "gradients", "pretrained model"),
        cost="one training of the dictionary, one backward pass of the model for each token",
        runtime="FLOPs",
    ),
)
@dataclass(frozen=True, kw_only=True)
class AttributionSAE(ReLU):
    """Keeps what is positive; pays for its sum, for its effects, and for the effect of the rest.

    Args:
        l1: As of `ReLU`.
        attribution: Weight of the mean over rows of sum_j |z_j <d_j, g>|.
        unexplained: Weight of the mean over rows of |<x - x_hat, g>|.
        normalize_grad: Whether the gradients of a batch are brought to a mean norm of sqrt(width).

    Reference:
        Olah et al., 2024, transformer-circuits.pub/2024/april-update; Makelov, Lange, Nanda, 2024,
        arXiv 2405.08366, appendix.
    """

    attribution: float = 1.0
    unexplained: float = 1.0
    normalize_grad: bool = True

    needs_gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("attribution", "unexplained"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise InvalidValue(f"{name}={value!r} is not allowed: give a number of at least 0")

    def losses(self, step: CodeStep, own: Own) -> dict[str, Tensor]:
        """Returns the L1 loss and those of both effects, weighted and warmed up.

        Raises:
            InvalidValue: If the step has no gradient, or one of another shape.
            NonFinite: If it holds NaN or infinity.
        """
        if step.gradient is None:
            raise InvalidValue(
                "the losses of an AttributionSAE weigh the model's gradient, and none was given: "
                "harvest the activations with gradients=True"
            )
        check_gradient(step.gradient, tuple(step.target.shape))
        gradient = self._scaled(step.gradient.to(step.reconstruction.dtype))
        effects = attribution_sum(step.z, step.decoder, gradient)
        left = unexplained_effect(step.target, step.reconstruction, gradient)
        return super().losses(step, own) | {
            "attribution": self.attribution * step.warmth * effects,
            "unexplained": self.unexplained * step.warmth * left,
        }

    def _scaled(self, gradient: Tensor) -> Tensor:
        if not self.normalize_grad:
            return gradient
        norms = gradient.norm(dim=1)
        mean = norms.sum() / (norms > 0).sum().clamp_min(1)
        return gradient * (math.sqrt(gradient.shape[1]) / mean.where(mean > 0, 1.0))
