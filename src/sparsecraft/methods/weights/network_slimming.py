"""Network slimming: one penalty on the scales of all batch normalisations, then the small ones go.

Liu et al. (2017) let the network find out which channels it needs: an L1 penalty on every scale
drives some towards zero while the network trains, a threshold over all layers together then removes
those channels, and the smaller network is trained a little more. It is the baseline of paper 18,
which finds that pressing on the channels that stay costs accuracy.

The penalty is added to the gradient, as in both official codes. `penalty="small_l2"` is a variant
of paper 18's code that presses on scales up to 0.09 only. A layer keeps at least `minimum` channels
within the exact budget, where the official code keeps them on top of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.channel_masks import Rule, check_mask, check_rule, choose_channels
from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.kinds import Clock, InTraining, Layers, Tensors, TrainedLayer
from sparsecraft.core.scale_gradients import Penalty, check_penalty, scale_gradient
from sparsecraft.core.scores import check_finite
from sparsecraft.model.channels import batch_norms
from sparsecraft.model.scale_targets import scale_targets


@dataclass(frozen=True, kw_only=True)
class SparseScales(InTraining):
    """Presses down scales of batch normalisations by a term in their gradients.

    Args:
        sparsity: Fraction of channels that go, for the rules "quantile" and "ratio".
        rule: Which channels go, see `choose_channels`.
        threshold: Largest magnitude that goes, for the rule "threshold".
        energy: Share of a layer's squares that may go, for the rule "energy".
        minimum: Channels that stay in every layer.
        strength: Lambda. A scale moves by about the sum of learning rates times this, so that short
            trainings need far larger values than the papers' 1e-4 to 5e-4.
        penalty: "l1", "l2", "smooth_l1" or "small_l2", see `scale_gradient`.
    """

    sparsity: float = 0.5
    rule: Rule = "quantile"
    threshold: float = 0.01
    energy: float = 1e-4
    minimum: int = 1
    strength: float = 5e-4
    penalty: Penalty = "l1"
    masked_weights = "live"

    def __post_init__(self) -> None:
        check_penalty(self.penalty, self.strength)
        check_rule(
            self.rule,
            sparsity=self.sparsity,
            threshold=self.threshold,
            energy=self.energy,
            minimum=self.minimum,
        )

    @property
    def density(self) -> float | None:
        """Fraction of the channels that is kept; None where the rule has no such number."""
        return 1.0 - self.sparsity if self.rule in ("quantile", "ratio") else None

    def targets(self, model: Any, select: Any) -> Any:
        """Returns the scales of the batch normalisations."""
        return scale_targets(model, select)

    def choose(self, scales: Tensors) -> dict[str, Tensor]:
        """Returns which channels the rule keeps, True for those, by name."""
        return choose_channels(
            scales,
            self.rule,
            sparsity=self.sparsity,
            threshold=self.threshold,
            energy=self.energy,
            minimum=self.minimum,
        )

    def add_gradients(
        self,
        model: nn.Module,
        masks: Mapping[str, Tensor] | None = None,
        *,
        rate: float | None = None,
    ) -> None:
        """Adds the term to the gradients of a model that trains without a Sparsifier.

        Call it between `backward()` and the optimiser's step.

        Args:
            model: With gradients.
            masks: bool (channels,) by the name of a BatchNorm, True for the channels that are kept
                and left alone; layers left out get nothing. None presses on every channel.
            rate: Learning rate of the coming step, for "smooth_l1".

        Raises:
            UnknownName: For a name that is no BatchNorm's.
            InvalidValue: For a mask of another length or type, a scale without gradient, or
                "smooth_l1" without a learning rate.
            NonFinite: If a scale is NaN or infinite.
        """
        norms = batch_norms(model)
        for name in norms if masks is None else masks:
            if name not in norms:
                raise UnknownName("BatchNorm layer", name, norms)
            scale = norms[name].weight
            if scale.grad is None:
                raise InvalidValue(
                    f"{name}: its scale has no gradient. Call add_gradients after backward(), on a "
                    "model whose scales train."
                )
            check_finite(scale, f"{name}: the scale")
            term = scale_gradient(scale.detach(), self.strength, self.penalty, rate=rate)
            if masks is not None:
                keep = check_mask(name, masks[name], scale.numel())
                term = term.masked_fill(keep.to(term.device), 0)
            scale.grad += term


@method(
    "network_slimming",
    paper=Paper(
        "Liu et al.",
        2017,
        "1708.06519",
        title="Learning Efficient Convolutional Networks through Network Slimming",
    ),
    taxonomy=Taxonomy(
        of="weights",
        when="during training",
        start_to_end="dense to sparse",
        mask="none",
        criterion="magnitude",
        granularity=("channel",),
        allocation="global",
        budget="hard global",
        needs=("data", "retraining", "dense weights"),
        cost="one training with a term in the gradient, and one of the smaller network",
        runtime="wall-clock",
    ),
)
@dataclass(frozen=True, kw_only=True)
class NetworkSlimming(SparseScales):
    """Presses down every scale while the network trains; at the end the smallest channels go.

    The finished model has the scales of the removed channels at zero; `prune_channels` then makes
    it smaller.

    Args:
        sparsity: Fraction of channels whose scale is zero at the end.
        strength: Lambda; 5e-4 halves the FLOPs of ResNet-50 in paper 18.

    Reference:
        Liu et al., 2017, arXiv 1708.06519, eq. 1.
    """

    def edit_gradient(
        self, weight: Tensor, gradient: Tensor, layer: TrainedLayer, clock: Clock
    ) -> Tensor:
        """Returns the gradient with the term of every channel added."""
        return gradient + scale_gradient(weight, self.strength, self.penalty, rate=clock.rate)

    def final_masks(self, weights: Tensors, layers: Layers, clock: Clock) -> Tensors:
        """Returns what the rule keeps of the trained scales."""
        return self.choose(weights)
