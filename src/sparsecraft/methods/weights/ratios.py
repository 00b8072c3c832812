"""Random pruning with the layer densities of another method.

Liu et al. (2022) ask what a pruning criterion really brings: the weights that it picks, or only
how many it leaves in each layer. They take the layer-wise densities of SNIP, GraSP or SynFlow and
draw the positions at random. Trained from there, such networks are hardly worse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.kinds import ModelContext, ModelWide, Pruned
from sparsecraft.methods.weights.snip import SNIP


@method(
    "random_ratios",
    paper=Paper(
        "Liu et al.",
        2022,
        "2202.02643",
        number=3,
        title="The Unreasonable Effectiveness of Random Pruning",
    ),
    taxonomy=Taxonomy(
        of="weights",
        when="before training",
        start_to_end="sparse to sparse",
        mask="static",
        criterion="random",
        granularity=("unstructured", "block"),
        allocation="global",
        budget="hard global",
        needs=("data", "labels", "gradients", "dense weights"),
        cost="that of the method whose densities are taken",
        runtime="FLOPs",
    ),
)
@dataclass(frozen=True, kw_only=True)
class RandomRatios(ModelWide):
    """Keeps random weights, as many in each layer as another method would keep there.

    Args:
        ratios_of: The model-wide method whose layer densities are taken; it prunes at this
            method's sparsity. The official code takes SNIP's at reinitialised weights.

    Reference:
        Liu et al., 2022, arXiv 2202.02643, section 3.
    """

    ratios_of: ModelWide = field(default_factory=lambda: SNIP(reinitialise=True))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.ratios_of, ModelWide):
            raise InvalidValue(
                f"random_ratios takes the densities of a model-wide method such as snip, grasp, "
                f"synflow or global_magnitude, not of {self.ratios_of!r}"
            )
        if self.pattern.fixed_density is not None:
            raise InvalidValue(
                f"the pattern {self.pattern} fixes every layer's density, so that there are no "
                'ratios to take. Use the method "random" with it.'
            )
        if self.ratios_of.sparsity not in (None, self.sparsity):
            raise InvalidValue(
                f"sparsity={self.sparsity} beside sparsity={self.ratios_of.sparsity} in ratios_of: "
                "give it once, to random_ratios"
            )

    @property
    def needs_batches(self) -> bool:  # type: ignore[override]
        """Whether the method whose densities are taken needs batches."""
        return self.ratios_of.needs_batches

    def prune(self, weights: Mapping[str, Tensor], context: ModelContext) -> dict[str, Pruned]:
        """Returns every matrix with random entries removed."""
        chosen = replace(self.ratios_of, sparsity=1 - self.density).prune(weights, context)
        return {
            name: self._redrawn(weight, chosen[name].mask, context.generator("ratios", name))
            for name, weight in weights.items()
        }

    def _redrawn(self, weight: Tensor, chosen: Tensor, generator: torch.Generator) -> Pruned:
        """Returns the weight with as many random entries kept as were chosen, at least one."""
        draws = torch.rand(weight.shape, generator=generator, dtype=torch.float64)
        density = max(1, int(chosen.sum())) / chosen.numel()
        return Pruned.keeping(weight, self.pattern.mask(draws, density).to(weight.device))
