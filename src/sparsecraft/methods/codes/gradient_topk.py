"""Gradient-weighted TopK (g-SAE): the selection looks at what a latent does to the model's loss.

Olmo et al. (2024) rank latents not by activation alone but by activation times the estimated effect
on the loss, z_j |<d_j, g>|, where g is the gradient of the model's loss with respect to the
activation. The code keeps the plain activations; the gradient only chooses, and no gradient flows
through the choice. Small but influential directions thus get a place in the dictionary.

No code of the authors is public. That the effect is added to the activation (`mode="sum"`) is our
reading of the paper's summary, `mode="product"` its limit. Gradients are scaled by one number, to a
mean norm of the root of their width over all training rows, which the paper does not do: beta then
means the same at every layer and for every batch size, and at 1 the effect of a typical direction
counts about as much as its activation. The gradient of a row needs the labels of the tokens after
it: without it, or where it is zero, the selection is the plain TopK.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from sparsecraft.core import penalties
from sparsecraft.core.attribution import (
    attribution_sum,
    check_gradient,
    influence,
    unexplained_effect,
)
from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.code import Code
from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.kinds import CodeStep, Own, Selecting, Side
from sparsecraft.core.kinds.activation import Reduction
from sparsecraft.methods.codes.topk import check_k

Mode = Literal["sum", "product"]
MODES: tuple[Mode, ...] = get_args(Mode)


@method(
    "gradient_topk",
    paper=Paper(
        "Olmo et al.",
        2024,
        "2411.10397",
        number=7,
        title="Features that Make a Difference: Leveraging Gradients for Improved Dictionary "
        "Learning",
    ),
    taxonomy=Taxonomy(
        of="codes",
        when="during training",
        start_to_end="dense to sparse",
        mask="input-dependent",
        criterion="gradient",
        granularity=("unstructured",),
        allocation="uniform",
        budget="hard per layer",
        needs=("data", "gradients", "pretrained model"),
        cost="one training of the dictionary, one backward pass of the model for each token",
        runtime="FLOPs",
    ),
)
@dataclass(frozen=True, kw_only=True)
class GradientTopK(Selecting):
    """Keeps the k latents of each row that weigh most in activation and effect on the loss.

    Args:
        k: Entries of a code that may be other than zero.
        beta: How much the effect counts beside the activation; 0 is TopK.
        mode: "sum" ranks z (1 + beta |<d, g>|), "product" z |<d, g>|.
        normalize_grad: Whether gradients are brought to a mean norm of sqrt(width).
        attribution: Weight of the loss sum_j |z_j <d_j, g>| (Attribution SAE).
        unexplained: Weight of the loss |<x - x_hat, g>| (Attribution SAE).

    Reference:
        Olmo et al., 2024, arXiv 2411.10397, section 3; Attribution SAE: Olah et al., 2024,
        transformer-circuits.pub/2024/april-update.
    """

    k: int = 32
    beta: float = 1.0
    mode: Mode = "sum"
    normalize_grad: bool = True
    attribution: float = 0.0
    unexplained: float = 0.0

    needs_gradient: ClassVar[bool] = True
    reductions: ClassVar[Mapping[str, Reduction]] = {"norms": "sum", "rows": "sum", "read": "sum"}

    def __post_init__(self) -> None:
        penalties.check_count(self.k)
        for name in ("beta", "attribution", "unexplained"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise InvalidValue(
                    f"{name}={value!r} is not allowed: give a number of at least 0 (0 leaves the "
                    "gradient out)"
                )
        if self.mode not in MODES:
            raise UnknownName("mode", str(self.mode), MODES)

    def check(self, d_in: int, d_sae: int) -> None:
        """Raises InvalidValue if k exceeds the dictionary."""
        check_k(self.k, d_sae)

    def initial(self, d_sae: int, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns the sum of the gradients' norms, and over how many rows."""
        counters = {"gradient_norms": torch.zeros(()), "gradient_rows": torch.tensor(0)}
        return {}, counters

    def penalty(self) -> penalties.Selection:
        """Returns at most k entries of each row, none negative."""
        return penalties.TopK(k=self.k)

    def select(self, u: Tensor, own: Own, side: Side, *, training: bool) -> Code:
        """Returns the code of pre-activations (rows, d_sae); a plain TopK without a gradient.

        Raises:
            InvalidValue: If the gradient has another shape than what is reconstructed.
            NonFinite: If it holds NaN or infinity.
        """
        if side.gradient is not None:
            check_gradient(side.gradient, (len(u), side.decoder.shape[1]))
            side = replace(side, gradient=self._scaled(side.gradient, own).to(u.dtype))
        return super().select(u, own, side, training=training)

    def scores(self, u: Tensor, side: Side) -> Tensor:
        """Returns what is ranked, (rows, d_sae); a row without effects ranks by activation.

        That is one without a gradient, and each of a transcoder whose decoder is still zero.
        """
        if side.gradient is None:
            return u
        z, effect = u.relu(), influence(side.decoder.to(u.dtype), side.gradient)
        if self.mode == "sum":
            return z * (1 + self.beta * effect)
        return torch.where(effect.any(1, keepdim=True), z * effect, z)

    def losses(self, step: CodeStep, own: Own) -> dict[str, Tensor]:
        """Returns the losses of the Attribution SAE that have a weight.

        Raises:
            InvalidValue: If one has, and the step has no gradient.
        """
        if not (self.attribution or self.unexplained):
            return {}
        if step.gradient is None:
            raise InvalidValue(
                "attribution and unexplained weigh losses of the model's gradient, and none was "
                "given: harvest the activations with gradients=True, or set both to 0."
            )
        gradient = self._scaled(step.gradient, own).to(step.reconstruction.dtype)
        found = {}
        if self.attribution:
            effect = attribution_sum(step.z, step.decoder, gradient)
            found["attribution"] = self.attribution * step.warmth * effect
        if self.unexplained:
            left = unexplained_effect(step.target, step.reconstruction, gradient)
            found["unexplained"] = self.unexplained * step.warmth * left
        return found

    def observe(self, u: Tensor, z: Tensor | Code, own: Own, side: Side) -> dict[str, Tensor]:
        """Returns the sum of the norms of the gradients, how many there are, and are not zero."""
        if side.gradient is None:
            nothing = torch.zeros(3, dtype=torch.int64, device=u.device)
            return {"norms": nothing[0].double(), "rows": nothing[1], "read": nothing[2]}
        norms = side.gradient.double().norm(dim=1)
        read = torch.tensor(len(norms), device=u.device)
        return {"norms": norms.sum(), "rows": (norms > 0).sum(), "read": read}

    def update(self, own: Own, statistics: Mapping[str, Tensor], progress: float) -> None:
        """Adds a batch to the mean norm of the gradients.

        Raises:
            InvalidValue: If all of the batch are zero, over all ranks and so on each of them.
        """
        read = int(statistics["read"])
        if read and not bool(statistics["rows"]):
            raise InvalidValue(
                f"the gradients of all {read} rows of a batch are zero, so they choose "
                "nothing. Look whether the loss depends on this activation, and whether the model "
                "fits its labels perfectly; TopK needs no gradients."
            )
        own.state["gradient_norms"].add_(statistics["norms"].to(own.state["gradient_norms"].dtype))
        own.state["gradient_rows"].add_(statistics["rows"])

    def _scaled(self, gradient: Tensor, own: Own) -> Tensor:
        """Returns the gradients at a mean norm of sqrt(width); first that of the batch counts."""
        if not self.normalize_grad:
            return gradient
        norms, rows = own.state["gradient_norms"], own.state["gradient_rows"]
        if not bool(rows):
            of_batch = gradient.norm(dim=1)
            norms, rows = of_batch.sum(), (of_batch > 0).sum()
        mean = norms / rows.clamp_min(1)
        factor = math.sqrt(gradient.shape[1]) / mean.where(mean > 0, 1.0)
        return gradient * factor.to(gradient.dtype)
