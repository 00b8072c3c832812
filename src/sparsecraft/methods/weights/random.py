"""Random pruning: the most naive baseline, and with good layer densities a strong one.

Liu et al. (2022) prune at random before training and train what is left. They find that the
densities of the layers (ERK above all) carry most of what pruning at initialisation can bring.
With them and enough width a randomly pruned network comes near its dense twin.

The official code draws each weight on its own, so that a layer's density fluctuates; here the
count is exact and `bernoulli=True` gives the paper's draw. A layer keeps at least one weight (with
per="row" one in each row), where the exact count would be zero and cut the network in two.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.kinds import Layer, Layerwise, Pruned
from sparsecraft.core.patterns import Unstructured
from sparsecraft.core.scores import check_finite


@method(
    "random",
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
        granularity=("unstructured", "N:M", "block", "channel"),
        allocation="any",
        budget="hard per layer",
        needs=(),
        cost="one random draw in each layer",
        runtime="FLOPs",
    ),
)
@dataclass(frozen=True, kw_only=True)
class Random(Layerwise):
    """Keeps weights drawn at random, each layer by its own stream.

    Args:
        bernoulli: Whether each weight is kept on its own with the layer's density, as in the
            official code, instead of an exact count.

    Reference:
        Liu et al., 2022, arXiv 2202.02643, section 3.
    """

    bernoulli: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bernoulli and self.pattern != Unstructured():
            raise InvalidValue(
                f"bernoulli=True draws each weight on its own and cannot follow the pattern "
                f"{self.pattern}. Use the unstructured pattern, or bernoulli=False."
            )

    def prune(self, weight: Tensor, layer: Layer) -> Pruned:
        """Returns the matrix with random entries removed."""
        check_finite(weight, f"{layer.name}: the weight")
        # Doubles, so that draws all but never tie; on the CPU, so that every device agrees.
        draws = torch.rand(weight.shape, generator=layer.generator(), dtype=torch.float64)
        if self.bernoulli:
            keep = draws < layer.density
        else:
            keep = self.pattern.mask(draws, self._density(weight, layer.density))
        return Pruned.keeping(weight, keep.to(weight.device))

    def _density(self, weight: Tensor, density: float) -> float:
        """Returns the density, or that of a single weight if that is more."""
        if not isinstance(self.pattern, Unstructured):
            return density
        return max(
            density, 1 / (weight.numel() if self.pattern.per == "tensor" else weight.shape[1])
        )
