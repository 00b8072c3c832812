"""MaskSparsity: decides which channels will go, then presses down their scales and no others.

A penalty on every scale, as in network slimming, holds back the channels that stay, and the network
underfits. Jiang et al. (2022) choose the channels first, by any rule, and add the L1 term to the
gradients of just those: the others train freely, the chosen ones go to zero, and removing them then
costs little.

Masks are True for a channel that is kept, everywhere in this library as in the official mask files;
the term works on the others. The official removal drops the constants that channels of scale zero
still give; `prune_channels(absorb_bias=True)` does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.channel_masks import check_mask
from sparsecraft.core.errors import UnknownName
from sparsecraft.core.kinds import Clock, Layers, Tensors, TrainedLayer
from sparsecraft.core.scale_gradients import scale_gradient
from sparsecraft.methods.weights.network_slimming import SparseScales


@method(
    "mask_sparsity",
    paper=Paper(
        "Jiang et al.",
        2022,
        "2201.06776",
        number=18,
        title="Pruning-aware Sparse Regularization for Network Pruning",
    ),
    taxonomy=Taxonomy(
        of="weights",
        when="during training",
        start_to_end="dense to sparse",
        mask="static",
        criterion="magnitude",
        granularity=("channel",),
        allocation="any",
        budget="hard global",
        needs=("data", "retraining", "pretrained model", "dense weights"),
        cost="one training with a term in the gradient, and one of the smaller network",
        runtime="wall-clock",
    ),
)
@dataclass(frozen=True, kw_only=True)
class MaskSparsity(SparseScales):
    """Presses down the scales of the channels that will be removed, and leaves the others free.

    The rule sees the scales as they are at the start, of a trained network or of one that network
    slimming has made sparse; the official README begins the training from the latter, the paper
    from the former. The finished model has the chosen scales at zero; `prune_channels` then makes
    it smaller.

    Args:
        masks: Which channels to keep, by the name of their BatchNorm, in place of the rule: True
            for each that is kept. `channel_mask` makes such masks, equal wherever channels are
            tied by a residual. Layers left out get no term.
        strength: Lambda; the papers' 5e-4 is for ImageNet.

    Reference:
        Jiang et al., 2022, arXiv 2201.06776, section 3.
    """

    masks: Mapping[str, Sequence[bool]] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.masks is not None:
            plain = {name: torch.as_tensor(keep).tolist() for name, keep in self.masks.items()}
            object.__setattr__(self, "masks", plain)

    @property
    def density(self) -> float | None:
        """Fraction of the channels that is kept; None where no number says it."""
        return super().density if self.masks is None else None

    def own_parameters(self, weights: Tensors, layers: Layers) -> Mapping[str, Tensors]:
        """Returns none; decides here, where all scales are seen, which channels will go."""
        kept = self.choose(weights) if self.masks is None else self._given(layers)
        for name, layer in layers.items():
            keep = kept.get(name, torch.ones(layer.shape, dtype=torch.bool))
            layer.state["prune"] = ~keep.to(weights[name].device)
        return {}

    def edit_gradient(
        self, weight: Tensor, gradient: Tensor, layer: TrainedLayer, clock: Clock
    ) -> Tensor:
        """Returns the gradient with the term of the channels that will go."""
        term = scale_gradient(weight, self.strength, self.penalty, rate=clock.rate)
        return gradient + term.masked_fill(~layer.state["prune"].to(term.device), 0)

    def final_masks(self, weights: Tensors, layers: Layers, clock: Clock) -> Tensors:
        """Returns the channels that were left free."""
        return {name: ~layer.state["prune"] for name, layer in layers.items()}

    def _given(self, layers: Layers) -> dict[str, Tensor]:
        found = {}
        for name, values in (self.masks or {}).items():
            if name not in layers:
                raise UnknownName("targeted BatchNorm layer", name, layers)
            keep = torch.as_tensor(values)
            found[name] = check_mask(name, keep, layers[name].shape[0])
        return found
