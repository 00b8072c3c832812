"""GraSP: prunes before training so that the gradient flow is kept.

Wang et al. (2020) ask how removing a weight changes the squared norm of the gradient, which says
how fast the loss will fall. To first order it is -w * Hg, a Hessian-vector product; the weights
with the largest values hurt the flow, or help it least, and go. The logits are divided by a
temperature of 200, which keeps the softmax of a network at initialisation far from saturation.

As in the official code each batch is cut in two halves: their gradients are added up first, and
each half then gives its own product with that sum. The paper's batch holds the same number of
examples of every class; drawing it so is for the caller, who knows the labels. Batches must hold
at least two examples. The official threshold removes one weight less; here the count is exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecraft.core import scores
from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.kinds import Batch, ModelContext, ModelWide, Pruned


@method(
    "grasp",
    paper=Paper(
        "Wang, Zhang, Grosse",
        2020,
        "2002.07376",
        title="Picking Winning Tickets Before Training by Preserving Gradient Flow",
    ),
    taxonomy=Taxonomy(
        of="weights",
        when="before training",
        start_to_end="sparse to sparse",
        mask="static",
        criterion="second order",
        granularity=("unstructured", "N:M", "block"),
        allocation="global",
        budget="hard global",
        needs=("data", "labels", "gradients", "dense weights"),
        cost="two passes over the batches, one of them with a second derivative",
        runtime="none",
    ),
)
@dataclass(frozen=True, kw_only=True)
class GraSP(ModelWide):
    """Keeps the weights whose removal would cost the most gradient flow.

    Args:
        temperature: Divides the logits before the loss.

    Reference:
        Wang, Zhang, Grosse, 2020, arXiv 2002.07376, eq. 8, algorithm 2.
    """

    temperature: float = 200.0
    needs_batches = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise InvalidValue(f"temperature={self.temperature}: it must be above 0")

    def prune(self, weights: Mapping[str, Tensor], context: ModelContext) -> dict[str, Pruned]:
        """Returns every matrix without the entries that carry least gradient flow."""
        for name, weight in weights.items():
            scores.check_finite(weight, f"{name}: the weight")
        return self.globally(weights, self.flows(weights, context))

    def flows(self, weights: Mapping[str, Tensor], context: ModelContext) -> dict[str, Tensor]:
        """Returns what each entry gives to the gradient flow, negative where it takes from it."""
        at = {name: weight.detach().clone().requires_grad_() for name, weight in weights.items()}
        halves = [half for batch in context.batches() for half in _halves(batch)]
        flat = list(at.values())
        total = [torch.zeros_like(weight) for weight in flat]
        for half in halves:
            loss = context.loss(at, half, temperature=self.temperature)
            for kept, gradient in zip(total, torch.autograd.grad(loss, flat), strict=True):
                kept += gradient
        products = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        for half in halves:
            loss = context.loss(at, half, temperature=self.temperature)
            gradients = torch.autograd.grad(loss, flat, create_graph=True)
            inner = torch.stack(
                [(g * kept).sum() for g, kept in zip(gradients, total, strict=True)]
            ).sum()
            for name, product in zip(at, torch.autograd.grad(inner, flat), strict=True):
                products[name] += product
        for name, product in products.items():
            scores.check_finite(product, f"{name}: the Hessian-gradient product")
        return scores.grasp({name: weight.detach() for name, weight in at.items()}, products)


def _halves(batch: Batch) -> Iterator[Batch]:
    """Yields the first and the second half of the examples of a batch."""
    sizes = {len(value) for value in batch.values() if isinstance(value, Tensor) and value.dim()}
    if len(sizes) != 1 or min(sizes) < 2:
        raise InvalidValue(
            "grasp cuts each batch in two halves: every tensor of a batch must hold the same "
            f"number of examples, at least 2; the sizes are {sorted(sizes) or 'none'}"
        )
    size = sizes.pop()
    for part in (slice(0, size // 2), slice(size // 2, size)):
        yield {
            key: value[part] if isinstance(value, Tensor) and value.dim() else value
            for key, value in batch.items()
        }
