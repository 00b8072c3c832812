"""AST: a dense model becomes 2:4 sparse by retraining under a mask whose decay is annealed in.

Huang et al. (2024) compute with the masked weights and let the gradient pass to all of them, so
that the mask, renewed every few steps, can change its mind. A decay of the masked weights inside
the optimiser (SR-STE's, but decoupled) grows with the training and calms the mask; the dense model
teaches at temperature 2. AST-Boosted adds a side branch of sums of consecutive inputs (SLoRB).

The official code keeps its mask as integers and inverts it bit by bit, which turns the decay of
masked weights into growth; here a mask is boolean. Its other pull, added to the gradient for
Llama, is `decoupled=False`. A mask by Wanda's score begins with the calibration data and is renewed
with the inputs of the step at hand, not with a sum over all steps so far. Betas and weight decay
are the optimiser's; the paper has 0.9 and 0.95, and for GPT-2 a decay of 0.1.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sparsecraft.core import scores
from sparsecraft.core.adams import Pull
from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.kinds import Clock, Layers, Tensors, TrainedLayer, WeightMethod
from sparsecraft.core.patterns import as_matrix, from_matrix
from sparsecraft.core.side_branch import Initial, check_width, initial_side, projection
from sparsecraft.core.statistics import InputNorm, Statistic
from sparsecraft.core.straight_through import straight_through
from sparsecraft.methods.weights.decaying import Decaying
from sparsecraft.methods.weights.wanda import Wanda
from sparsecraft.model.side_branch import SideBranchLinear
from sparsecraft.model.targets import find_targets


@method(
    "ast",
    paper=Paper(
        "Huang et al.",
        2024,
        "2407.20584",
        title="Pruning Large Language Models with Semi-Structural Adaptive Sparse Training",
    ),
    taxonomy=Taxonomy(
        of="weights",
        when="during training",
        start_to_end="dense to sparse",
        mask="dynamic",
        criterion="magnitude",
        granularity=("N:M", "unstructured", "block", "channel"),
        allocation="uniform",
        budget="hard per layer",
        needs=("data", "retraining", "pretrained model", "dense weights"),
        cost="a dense training, and a forward pass of the teacher in each step",
        runtime="wall-clock",
    ),
)
@dataclass(frozen=True, kw_only=True)
class AST(Decaying):
    """Computes with the largest weights, trains all, and decays the others inside the optimiser.

    Args:
        lam: lambda, the strength of the decay after its ramp, on the scale of the paper's loss.
        ramp: Share of the training over which the decay grows from 0, in [0, 1].
        distillation: Weight of the teacher in the loss, that of the task being the rest.
        temperature: T of the distillation, whose divergence is multiplied by T^2.
        metric: "magnitude" renews the mask by |W|; "wanda" by |W| times the norm of the input, over
            the calibration data for the first mask and over the step's own data for later ones.
        decoupled: Whether the decay stays out of the first moment.
        side_inputs: k, the inputs that the side branch sums; 0 has no branch. The finished model
            then has other layers ("augmented").
        side_start: How the branch begins: from the "mean" or the "sum" of the pruned weights, or
            at random ("xavier").
        train_projection: Whether the branch learns which inputs to sum.

    Reference:
        Huang et al., 2024, arXiv 2407.20584.
    """

    distillation: float = 2 / 3
    temperature: float = 2.0
    lam: float = 6e-5
    ramp: float = 0.25
    metric: Literal["magnitude", "wanda"] = "magnitude"
    decoupled: bool = True
    side_inputs: int = 0
    side_start: Initial = "mean"
    train_projection: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.ramp <= 1:
            raise InvalidValue(f"ramp={self.ramp!r} is not allowed: it is a share of the training")
        if self.metric not in ("magnitude", "wanda"):
            raise InvalidValue(f'metric={self.metric!r} is not one of "magnitude", "wanda"')
        if self.side_start not in ("mean", "sum", "xavier"):
            raise InvalidValue(f"side_start={self.side_start!r} is not mean, sum or xavier")
        if self.side_inputs < 0:
            raise InvalidValue(f"side_inputs={self.side_inputs} is not allowed: give at least 0")
        Pull("weight", self.lam)

    @property
    def statistics(self) -> tuple[type[Statistic], ...]:  # type: ignore[override]
        """The norm of the inputs, where masks are renewed by it."""
        return (InputNorm,) if self.metric == "wanda" and self.mask_every else ()

    def targets(self, model: Any, select: Any) -> Any:
        """Returns the targets; those of a side branch are linear layers whose inputs it divides."""
        if not self.side_inputs:
            return None
        found = find_targets(model, select)
        for target in found:
            if not isinstance(model.get_submodule(target.module), nn.Linear):
                raise InvalidValue(
                    f"{target.name} is a {target.type}: a side branch stands beside nn.Linear "
                    "only. Leave it out of the targets, or give side_inputs=0."
                )
            check_width(target.shape[1], self.side_inputs, target.name)
        return found

    def start(self) -> WeightMethod | None:
        """Returns Wanda where it makes the mask."""
        if self.metric == "magnitude":
            return None
        return Wanda(sparsity=self.sparsity, pattern=self.pattern)

    def own_parameters(self, weights: Tensors, layers: Layers) -> Mapping[str, Tensors]:
        """Returns the side branches: S, and P where it is trained."""
        if not self.side_inputs:
            return {}
        return {name: self._side(weight, layers[name]) for name, weight in weights.items()}

    def forward(self, weight: Tensor, layer: TrainedLayer, clock: Clock) -> Tensor:
        """Returns m * W + S P; the gradient reaches all of W."""
        sparse = straight_through(_masked(weight, layer), weight)
        if not self.side_inputs:
            return sparse
        side = layer.parameters["side"]
        sums = layer.parameters.get("projection")
        if sums is None:  # plain sums: a column of S stands for each of its inputs
            return sparse + side.repeat_interleave(self.side_inputs, dim=1).to(weight.dtype)
        return sparse + (side @ sums).to(weight.dtype)

    def pull(self, layers: Layers, clock: Clock) -> Pull:
        """Returns the decay of this step, which grows over the ramp."""
        ramp = self.ramp * clock.total
        grown = min(1.0, clock.step / ramp) if ramp else 1.0
        return Pull("weight", self.loss_scale * self.lam, grown, self.decoupled)

    def update_masks(
        self, weights: Tensors, gradients: Tensors, layers: Layers, clock: Clock
    ) -> Tensors:
        """Returns the masks of the highest scores; a layer that saw no input keeps its own."""
        if self.metric == "magnitude":
            return super().update_masks(weights, gradients, layers, clock)
        masks = {}
        for name, weight in weights.items():
            if InputNorm in layers[name].statistics:
                norms = layers[name].statistics[InputNorm]
                score = scores.wanda(as_matrix(weight), norms.to(weight.device))
                keep = self.pattern.mask(score, self.density)
                masks[name] = from_matrix(keep, layers[name].shape)
        return masks

    def export(self, weight: Tensor, layer: TrainedLayer, clock: Clock) -> Tensor:
        """Returns m * W; the side branch is put in place by `surgery`."""
        return _masked(weight, layer)

    def surgery(self, model: Any, layers: Layers) -> Any:
        """Returns a copy of the model with the side branches in place, or the model itself."""
        if not self.side_inputs:
            return model
        finished = copy.deepcopy(model)
        for name, layer in layers.items():
            alone = isinstance(finished, nn.Linear)  # its target bears the parameter's name
            linear = finished if alone else finished.get_submodule(name)
            side, sums = layer.parameters["side"], layer.parameters.get("projection")
            branch = SideBranchLinear(linear, side, sums)
            if alone:
                return branch
            finished.set_submodule(name, branch)
        return finished

    def remarks(self, weights: Tensors, layers: Layers, clock: Clock) -> Iterator[str]:
        """Yields how many weights the side branches add."""
        if self.side_inputs:
            extra = sum(each.numel() for la in layers.values() for each in la.parameters.values())
            total = sum(weight.numel() for weight in weights.values())
            yield (
                f"side branches add {extra} weights to the {self.density:g} of {total} that are "
                f"kept: with them the density is {self.density + extra / total:.4f}"
            )

    def _side(self, weight: Tensor, layer: TrainedLayer) -> Tensors:
        precise = weight.to(torch.promote_types(weight.dtype, torch.float32))
        keep = self.largest(weight) if layer.mask is None else layer.mask
        draw = layer.generator("side branch")
        side = initial_side(precise, keep, self.side_inputs, self.side_start, draw)
        if not self.train_projection:
            return {"side": side}
        return {"side": side, "projection": projection(weight.shape[1], self.side_inputs).to(side)}


def _masked(weight: Tensor, layer: TrainedLayer) -> Tensor:
    return weight if layer.mask is None else weight.masked_fill(~layer.mask, 0)
