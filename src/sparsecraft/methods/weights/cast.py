"""CAST: a dense model becomes 2:4 sparse by a pull that grows, with no jump at the end.

Huang et al. (2025) train with all weights in place. An optimiser draws the weights that a mask of
the largest would remove to zero, its share growing from 0 to 1 over the training; trained scales
restore lost magnitude, and the dense model teaches. At the end the mask removes what is zero
already, and the scales are folded into the weights.

There is no official code. What the paper leaves open is taken from a public reproduction: scales
belong to contiguous blocks of columns, the mask goes by the raw weight, Adam's usual betas. The
paper gives lambda for one model and says that it should be about as large as a gradient; "auto"
measures the mean |gradient| of the first step. Once the pull dominates, a masked weight moves by
the learning rate in each step, whatever lambda is: what matters is that the sum of the learning
rates, each times the pull's share, is larger than the weights (`core.adams.reach`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecraft.core.adams import Form, Pull, residue, share_at
from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.kinds import Clock, Layers, Tensors, TrainedLayer
from sparsecraft.methods.weights.decaying import Decaying

ENOUGH_REACH = 3.0
"""Times the mean |w| that the pull should be able to move a weight."""
COLLAPSED = 0.01
"""Masked over kept mean magnitude below which the final pruning removes nothing of note."""


@method(
    "cast",
    paper=Paper(
        "Huang et al.",
        2025,
        "2509.25996",
        number=20,
        title="CAST: Continuous and Differentiable Semi-Structured Sparsity-Aware Training for "
        "Large Language Models",
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
class CAST(Decaying):
    """Trains densely with AdamS, which draws all but the largest weights of each group to zero.

    Args:
        lam: lambda, the strength of the pull on the scale of the paper's loss, or "auto".
        distillation: eta, the share of KL(teacher || student) in the loss.
        scale_groups: Trained scales of an output row, each for a block of consecutive inputs; 0
            trains none.
        share: alpha, the pull's share; None lets it grow from 0 to 1.
        form: "mixed" gives the pull its share of the moment (the paper); "added" adds it.
        decoupled: Whether the first moment is kept free of the pull.
        selective: Whether only masked weights are pulled, or all.

    Reference:
        Huang et al., 2025, arXiv 2509.25996, eq. 6 and 11 to 13, algorithms 1 and 2.
    """

    distillation: float = 1 / 3
    lam: str | float = "auto"
    scale_groups: int = 2
    share: float | None = None
    form: Form = "mixed"
    decoupled: bool = True
    selective: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.lam, str) and self.lam != "auto":
            raise InvalidValue(f'lam={self.lam!r} is not allowed: give a number or "auto"')
        if self.scale_groups < 0:
            raise InvalidValue(f"scale_groups={self.scale_groups} is not allowed: give at least 0")
        self._pull(0.0 if self.lam == "auto" else float(self.lam), self.share or 0.0)

    def own_parameters(self, weights: Tensors, layers: Layers) -> Mapping[str, Tensors]:
        """Returns the scales A (outputs, groups), all 1 (eq. 11)."""
        if not self.scale_groups:
            return {}
        for name, weight in weights.items():
            check_groups(weight.shape[1], self.scale_groups, name)
        return {
            name: {"scale": _ones(weight, (weight.shape[0], self.scale_groups))}
            for name, weight in weights.items()
        }

    def begin(self, weight: Tensor, layer: TrainedLayer, clock: Clock) -> Tensor:
        """Returns the weight as it is, having noted how large it is."""
        layer.state["magnitude"] = weight.detach().abs().float().mean()
        layer.state["reach"] = torch.zeros_like(layer.state["magnitude"])
        return super().begin(weight, layer, clock)

    def forward(self, weight: Tensor, layer: TrainedLayer, clock: Clock) -> Tensor:
        """Returns A * W, without a mask (eq. 12)."""
        scale = layer.parameters.get("scale")
        return weight if scale is None else scaled(weight, scale)

    def active_density(self, layer: TrainedLayer, clock: Clock) -> float | None:
        """Returns 1: the training is dense until its end."""
        return 1.0

    def edit_gradient(
        self, weight: Tensor, gradient: Tensor, layer: TrainedLayer, clock: Clock
    ) -> Tensor:
        """Returns the gradient as it is, having noted how large the first one is."""
        if "gradient" not in layer.state:
            layer.state["gradient"] = gradient.abs().float().mean()
        layer.state["reach"] += clock.rate * self._share(clock)
        return gradient

    def pull(self, layers: Layers, clock: Clock) -> Pull:
        """Returns the pull of this step (algorithm 1)."""
        if self.lam == "auto":
            strength = _mean_gradient(layers)
        else:
            strength = self.loss_scale * float(self.lam)
        return self._pull(strength, self._share(clock))

    def remarks(self, weights: Tensors, layers: Layers, clock: Clock) -> Iterator[str]:
        """Yields which layers the pull could not bring to zero."""
        masks = {name: layer.mask for name, layer in layers.items() if layer.mask is not None}
        left = residue(weights, masks)
        if left <= COLLAPSED:
            return
        moved = {
            name: float(la.state["reach"] / la.state["magnitude"]) for name, la in layers.items()
        }
        name = min(moved, key=lambda each: moved[each])
        yield (
            f"masked weights still had {left:.1%} of the mean magnitude of kept ones when the "
            "final mask removed them. The learning rates, each times the pull's share, sum to "
            f"{moved[name]:.2g} times the mean magnitude of {name}; {ENOUGH_REACH:g} times is "
            "enough. Train longer, or with a larger learning rate."
        )

    def _share(self, clock: Clock) -> float:
        return share_at(clock.step, clock.total) if self.share is None else self.share

    def _pull(self, strength: float, share: float) -> Pull:
        return Pull(self.form, strength, share, self.decoupled, self.selective)


def scaled(weight: Tensor, scale: Tensor) -> Tensor:
    """Returns A * W: entry (r, c) times scale[r, floor(c n / C)].

    Args:
        weight: (outputs, C, *kernel).
        scale: (outputs, n), n a divisor of C.

    Example:
        >>> scaled(torch.ones(1, 4), torch.tensor([[1.0, 2.0]]))
        tensor([[1., 1., 2., 2.]])

    Reference:
        Huang et al., 2025, arXiv 2509.25996, eq. 11 and 12.
    """
    groups = weight.unflatten(1, (scale.shape[1], -1))
    shape = (*scale.shape, *(1 for _ in range(groups.dim() - 2)))
    return (groups * scale.view(shape)).flatten(1, 2).to(weight.dtype)


def check_groups(inputs: int, groups: int, name: str) -> None:
    """Raises InvalidValue unless the groups divide the number of inputs."""
    if inputs % groups:
        raise InvalidValue(
            f"{name}: scale_groups={groups} needs a multiple of {groups} inputs, but the layer has "
            f"{inputs}. Choose a number that divides it, 1 or 0, or leave the layer out of the "
            "targets."
        )


def _ones(weight: Tensor, shape: tuple[int, int]) -> Tensor:
    # Near 1 a 16-bit number has steps larger than a learning rate.
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return torch.ones(shape, dtype=dtype, device=weight.device)


def _mean_gradient(layers: Layers) -> float:
    """Returns the mean |gradient| over all layers in the first step."""
    noted = [layer for layer in layers.values() if "gradient" in layer.state]
    total = sum(layer.mask.numel() for layer in noted if layer.mask is not None)
    sums = [
        layer.state["gradient"] * layer.mask.numel() for layer in noted if layer.mask is not None
    ]
    return float(torch.stack(sums).sum()) / total if sums else 0.0
