"""SNIP: prunes before training by how much the loss feels each connection.

Lee et al. (2018) multiply each weight by a switch c and ask how the loss changes with it at c = 1.
That sensitivity, |w * dL/dw| on one batch, is compared over all layers and the lowest are removed
before the first step. Nothing else is needed: one forward and one backward pass.

The official code of paper 03 takes the sensitivities on a copy whose weights are drawn anew
(Xavier normal), so that the scale of a trained or odd initialisation does not matter:
`reinitialise=True`. The default scores the weights that the mask is for. With several batches the
gradients add up before the absolute value is taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecraft.core import scores
from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.kinds import ModelContext, ModelWide, Pruned


@method(
    "snip",
    paper=Paper(
        "Lee, Ajanthan, Torr",
        2018,
        "1810.02340",
        title="SNIP: Single-shot Network Pruning based on Connection Sensitivity",
    ),
    taxonomy=Taxonomy(
        of="weights",
        when="before training",
        start_to_end="sparse to sparse",
        mask="static",
        criterion="gradient",
        granularity=("unstructured", "N:M", "block"),
        allocation="global",
        budget="hard global",
        needs=("data", "labels", "gradients", "dense weights"),
        cost="one forward and backward pass over the batches",
        runtime="none",
    ),
)
@dataclass(frozen=True, kw_only=True)
class SNIP(ModelWide):
    """Keeps the weights to which the loss is most sensitive, over all layers together.

    Args:
        reinitialise: Whether the sensitivities are taken at weights drawn anew (Xavier normal)
            instead of the model's own; the official code of Liu et al. (2202.02643) does so.

    Reference:
        Lee et al., 2018, arXiv 1810.02340, eq. 6.
    """

    reinitialise: bool = False
    needs_batches = True

    def prune(self, weights: Mapping[str, Tensor], context: ModelContext) -> dict[str, Pruned]:
        """Returns every matrix without its least sensitive entries."""
        for name, weight in weights.items():
            scores.check_finite(weight, f"{name}: the weight")
        return self.globally(weights, self.sensitivities(weights, context))

    def sensitivities(
        self, weights: Mapping[str, Tensor], context: ModelContext
    ) -> dict[str, Tensor]:
        """Returns the connection sensitivities, which sum to 1 over all layers."""
        at = _xavier(weights, context) if self.reinitialise else weights
        at = {name: weight.detach().clone().requires_grad_() for name, weight in at.items()}
        gradients = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        for batch in context.batches():
            found = torch.autograd.grad(context.loss(at, batch), list(at.values()))
            for name, gradient in zip(at, found, strict=True):
                gradients[name] += gradient
        for name, gradient in gradients.items():
            scores.check_finite(gradient, f"{name}: the gradient")
        return scores.snip({name: weight.detach() for name, weight in at.items()}, gradients)


def _xavier(weights: Mapping[str, Tensor], context: ModelContext) -> dict[str, Tensor]:
    """Returns matrices drawn with variance 2 / (fan in + fan out), kernels counted in both."""
    drawn = {}
    for name, weight in weights.items():
        shape = context.shapes[name]
        deviation = math.sqrt(2 / (sum(shape[:2]) * math.prod(shape[2:])))
        noise = torch.randn(weight.shape, generator=context.generator("xavier", name))
        drawn[name] = (noise * deviation).to(weight)
    return drawn
