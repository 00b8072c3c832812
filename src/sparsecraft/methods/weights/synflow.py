"""SynFlow: prunes before training without any data, and without ever cutting the network in two.

Tanaka et al. (2020) show that one-shot scores concentrate the cuts on the widest layers until one
of them is gone. They make all parameters positive, send an input of ones through the network, and
score each weight by its share of what arrives. Removing a little in each of 100 rounds, at an
exponentially falling density, conserves the flow of every layer, so none can collapse.

The scores are taken in float64: the product of many positive layers overflows float32. The user's
signs and values are never touched. A pruned weight never returns, also where kept ones score zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecraft.core import scores
from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.kinds import ModelContext, ModelWide, Pruned
from sparsecraft.core.schedules import Exponential


@method(
    "synflow",
    paper=Paper(
        "Tanaka et al.",
        2020,
        "2006.05467",
        title="Pruning neural networks without any data by iteratively conserving synaptic flow",
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
        needs=("gradients", "dense weights"),
        cost="one forward and backward pass for a single input of ones, in each round",
        runtime="none",
    ),
)
@dataclass(frozen=True, kw_only=True)
class SynFlow(ModelWide):
    """Keeps the weights through which most of a data-free flow passes, in many small rounds.

    Args:
        rounds: How many times scores are taken and weights removed.

    Reference:
        Tanaka et al., 2020, arXiv 2006.05467, algorithm 1.
    """

    rounds: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds < 1:
            raise InvalidValue(f"rounds={self.rounds}: synflow needs at least 1 round")

    def prune(self, weights: Mapping[str, Tensor], context: ModelContext) -> dict[str, Pruned]:
        """Returns every matrix without the entries of least flow."""
        for name, weight in weights.items():
            scores.check_finite(weight, f"{name}: the weight")
        positive = {name: weight.detach().abs().double() for name, weight in weights.items()}
        masks = {
            name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()
        }
        for density in self._densities():
            flow = _flow(positive, masks, context)
            found = self.pattern.global_masks(list(flow.values()), density)
            masks = dict(zip(flow, found, strict=True))
        return {name: Pruned.keeping(weight, masks[name]) for name, weight in weights.items()}

    def _densities(self) -> list[float]:
        """Returns the density after each round; a pattern that fixes it is met in one."""
        if self.pattern.fixed_density is not None:
            return [self.density]
        schedule = Exponential(final=self.density, end=self.rounds)
        return [schedule.density(step) for step in range(1, self.rounds + 1)]


def _flow(
    positive: Mapping[str, Tensor], masks: Mapping[str, Tensor], context: ModelContext
) -> dict[str, Tensor]:
    """Returns the share of each kept entry in the flow, and -1 for the pruned ones."""
    left = {name: (w * masks[name]).requires_grad_() for name, w in positive.items()}
    gradients = torch.autograd.grad(context.flow(left), list(left.values()))
    flow = {}
    for (name, weight), gradient in zip(left.items(), gradients, strict=True):
        share = scores.synflow(weight.detach(), gradient)
        scores.check_finite(share, f"{name}: the synaptic flow")
        flow[name] = share.masked_fill(~masks[name], -1)
    return flow
