"""Weight Compander: trains v and computes with w = a * arctan(v / b), so that weights become alike.

Cakaj et al. (2023) reparametrise every weight by a function that is steep at zero and saturates:
small weights are driven away from zero, large ones are held back, and many medium weights decide
instead of a few large ones. They report better generalisation on top of weight decay, dropout and
augmentation. In a library of sparsity it is the opposite pole, a control and a partner of pruning.

With plain SGD a step in v moves w by the squared slope times the gradient: (a / b)^2 times further
near zero, hardly at all in the tails. Adam divides most of this out. Two things that are not the
shape of the function come with it and must be controlled for: the larger step, and initial weights
that are about a / b times as large; claim 30 has both controls.

Departures: the constants are by default multiples of each layer's own standard deviation, since
one pair cannot suit layers whose scales differ tenfold. The paper trains a and b; so does
`learn=True`, at a thousandth of the learning rate, since their gradients are sums over all weights.
Other functions of the same kind can be chosen, and `power`, which promotes sparsity instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.companding import Companding, companding
from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.kinds import Clock, InTraining, Layers, Tensors, TrainedLayer, WeightMethod

REACH = 0.95
"""Of the bound: how far `init="preserve"` goes, beyond which the inverse explodes."""
FLAT = 0.05
"""The slope below which a weight counts as saturated."""

_ALLOWED = {
    "granularity": ("layer", "global"),
    "positive": ("exp", "softplus", "clamp"),
    "init": ("standard", "preserve"),
    "decay_on": ("v", "w"),
}


@method(
    "weight_compander",
    paper=Paper(
        "Cakaj et al.",
        2023,
        "2306.16993",
        number=30,
        title="Weight Compander: A Simple Weight Reparameterization for Regularization",
    ),
    taxonomy=Taxonomy(
        of="weights",
        when="during training",
        start_to_end="dense to dense",
        mask="none",
        criterion="none",
        granularity=("unstructured",),
        allocation="none",
        budget="none",
        needs=("data", "labels", "gradients"),
        cost="one function of each weight in every step",
        runtime="none",
    ),
)
@dataclass(frozen=True, kw_only=True)
class WeightCompander(InTraining):
    """Trains each weight through a companding function, so that many medium weights decide.

    The parameter of the model holds v while it trains, with the optimiser's weight decay on it;
    the finished model holds w, at no cost and in its usual format.

    Args:
        function: "arctan" (the paper's), "tanh", "softsign", "algebraic", "mu-law" or "power".
        a: Scale of the weight; by default `alpha` standard deviations of the initial weights.
        b: Scale of the trained value; by default `beta` standard deviations.
        alpha: See a.
        beta: See b.
        learn: Whether a and b train too. They have no weight decay.
        granularity: Whether each layer has its pair, or all share one.
        positive: How learnt constants stay positive: trained as their logarithm ("exp"), through
            a softplus, or as they are, seen from 1e-4 on ("clamp").
        rate_scale: Learning rate of a and b over that of the weights.
        init: "standard" takes the initial weights as v, so that w starts a / b times as large;
            "preserve" keeps the function of a pretrained model, v being the inverse of its weights.
        clip_tolerance: Largest share of a layer's weights that "preserve" may have to clip at 0.95
            of the bound; the share is kept as "clipped" in the layer's state.
        decay_on: "v" leaves weight decay to the optimiser; "w" adds `weight_decay` times w to the
            gradient of w, beside an optimiser without decay.
        weight_decay: With decay_on="w".
        allow_contraction: Whether a slope at zero of 1 or less, which does not expand, is meant.
        source: Makes a mask before training, which w keeps; the weights under it are zero.

    Reference:
        Cakaj, Mehnert, Yang, 2023, arXiv 2306.16993.
    """

    function: str = "arctan"
    a: float | None = None
    b: float | None = None
    alpha: float = 2.0
    beta: float = 1.5
    learn: bool = False
    granularity: Literal["layer", "global"] = "layer"
    positive: Literal["exp", "softplus", "clamp"] = "exp"
    rate_scale: float = 1e-3
    init: Literal["standard", "preserve"] = "standard"
    clip_tolerance: float = 0.01
    decay_on: Literal["v", "w"] = "v"
    weight_decay: float = 0.0
    allow_contraction: bool = False
    source: WeightMethod | None = None
    masked_weights = "live"

    def __post_init__(self) -> None:
        companding(self.function)
        for name in ("a", "b", "alpha", "beta"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise InvalidValue(f"{name}={value!r} is not allowed: it must be positive")
        for name, allowed in _ALLOWED.items():
            if getattr(self, name) not in allowed:
                listed = " or ".join(repr(each) for each in allowed)
                raise InvalidValue(f"{name}={getattr(self, name)!r} is not allowed: give {listed}")
        self._check_numbers()

    def _check_numbers(self) -> None:
        if (self.a is None) != (self.b is None):
            raise InvalidValue(
                f"a={self.a!r} beside b={self.b!r}: give both constants, or neither and let alpha "
                "and beta scale them by each layer's standard deviation"
            )
        if not 0 <= self.clip_tolerance <= 1:
            raise InvalidValue(
                f"clip_tolerance={self.clip_tolerance!r} is not allowed: it is a share, in [0, 1]"
            )
        if not self.rate_scale > 0:
            raise InvalidValue(f"rate_scale={self.rate_scale!r} is not allowed: give more than 0")
        if self.weight_decay < 0 or (self.weight_decay and self.decay_on == "v"):
            raise InvalidValue(
                f'weight_decay={self.weight_decay!r} with decay_on="{self.decay_on}" is not '
                "allowed: a decay of v belongs to the optimiser; one of w is at least 0, with "
                'decay_on="w"'
            )
        if self.ratio <= 1 and self.function != "power" and not self.allow_contraction:
            raise InvalidValue(
                f"a / b = {self.ratio:g} does not expand small weights: the slope at zero must be "
                "above 1. Choose a > b, or set allow_contraction=True if that is meant."
            )

    @property
    def psi(self) -> Companding:
        """The companding function."""
        return companding(self.function)

    @property
    def ratio(self) -> float:
        """Initial a / b: the slope at zero of all but `power`."""
        if self.a is not None and self.b is not None:
            return self.a / self.b
        return self.alpha / self.beta

    def start(self) -> WeightMethod | None:
        """Returns the method that makes the mask, or None for a dense network."""
        return self.source

    def own_parameters(self, weights: Tensors, layers: Layers) -> Mapping[str, Tensors]:
        """Sets the constants of every layer, and returns those that train.

        Raises:
            InvalidValue: If a layer is not of floating point, or has equal weights only.
        """
        trained: dict[str, Tensors] = {}
        for name, (a, b) in self._constants(weights).items():
            if not self.learn:
                layers[name].state.update({"a": a, "b": b})
            elif self.granularity == "global" and trained:
                trained[name] = next(iter(trained.values()))
            else:
                trained[name] = {"a": self._raw(a), "b": self._raw(b)}
        return trained

    def own_options(self) -> Mapping[str, float]:
        """Returns the scale of their learning rate; they have no weight decay."""
        return {"rate_scale": self.rate_scale, "weight_decay": 0.0}

    def constants(self, layer: TrainedLayer) -> tuple[Tensor, Tensor]:
        """Returns (a, b) of a layer at present, scalars, differentiable where they train."""
        if not self.learn:
            return layer.state["a"], layer.state["b"]
        a, b = layer.parameters["a"], layer.parameters["b"]
        if self.positive == "exp":
            return a.exp(), b.exp()
        if self.positive == "softplus":
            return nn.functional.softplus(a), nn.functional.softplus(b)
        return _floored(a), _floored(b)

    def begin(self, weight: Tensor, layer: TrainedLayer, clock: Clock) -> Tensor:
        """Returns the initial v.

        Raises:
            InvalidValue: If "preserve" would have to clip more than is tolerated.
        """
        if layer.mask is not None:
            weight = weight.masked_fill(~layer.mask, 0)
        if self.init == "standard":
            return weight
        a, b = self.constants(layer)
        reach = REACH * self.psi.bound(float(a))
        clipped = float((weight.abs() > reach).double().mean())
        layer.state["clipped"] = torch.tensor(clipped)
        if clipped > self.clip_tolerance:
            raise InvalidValue(
                f"{layer.name}: {clipped:.1%} of the weights lie beyond {reach:.3g}, which "
                f"{self.function} can hardly reach with a = {float(a):.3g}; at most "
                f"{self.clip_tolerance:.1%} may be clipped. Give a larger a (or alpha), or raise "
                "clip_tolerance."
            )
        return self.psi.inverse(weight.clamp(-reach, reach), a, b)

    def forward(self, weight: Tensor, layer: TrainedLayer, clock: Clock) -> Tensor:
        """Returns w of v; zero under a mask."""
        a, b = self.constants(layer)
        # Constants of a higher precision must not change the type that the layer computes in.
        w = self.psi.value(weight, a.to(weight), b.to(weight))
        return w if layer.mask is None else w * layer.mask

    def edit_gradient(
        self, weight: Tensor, gradient: Tensor, layer: TrainedLayer, clock: Clock
    ) -> Tensor:
        """Returns the gradient of v, with that of weight_decay * w^2 / 2 where decay is on w."""
        if self.decay_on == "v":
            return gradient
        a, b = (each.detach().to(weight) for each in self.constants(layer))
        slope = self.psi.derivative(weight, a, b)
        return gradient + self.weight_decay * self.forward(weight, layer, clock).detach() * slope

    @torch.no_grad()
    def saturation(self, weight: Tensor, layer: TrainedLayer) -> float:
        """Returns the share of a layer's weights that are all but frozen, slope below 0.05.

        Args:
            weight: v, as `sparsifier.weights()` gives it.
            layer: As `sparsifier.layers` gives it.
        """
        a, b = self.constants(layer)
        return float((self.psi.derivative(weight, a, b) < FLAT).double().mean())

    def _constants(self, weights: Tensors) -> dict[str, tuple[Tensor, Tensor]]:
        """Returns the initial (a, b) of every layer."""
        for name, weight in weights.items():
            if not weight.is_floating_point():
                raise InvalidValue(
                    f"{name} is of type {weight.dtype}: only floating-point weights can be "
                    "reparametrised. Leave it out of the targets ('!name')."
                )
        if self.a is not None and self.b is not None:
            return {name: _tensors(self.a, self.b, weight) for name, weight in weights.items()}
        deviations = {name: _deviation([weight]) for name, weight in weights.items()}
        if self.granularity == "global":
            deviations = dict.fromkeys(weights, _deviation(list(weights.values())))
        for name, deviation in deviations.items():
            if not deviation > 0:
                raise InvalidValue(
                    f"{name}: its initial weights are all equal, so that their standard deviation "
                    "gives no scale. Give a and b, or leave the layer out of the targets."
                )
        return {
            name: _tensors(self.alpha * deviation, self.beta * deviation, weights[name])
            for name, deviation in deviations.items()
        }

    def _raw(self, value: Tensor) -> Tensor:
        """Returns what is trained in place of a positive constant."""
        if self.positive == "exp":
            return value.log()
        return value + torch.log(-torch.expm1(-value)) if self.positive == "softplus" else value


def _floored(constant: Tensor) -> Tensor:
    """Returns the constant, at least 1e-4, with the slope that lets it rise from below again."""
    return constant + (constant.clamp_min(1e-4) - constant).detach()


def _deviation(weights: list[Tensor]) -> float:
    return float(torch.cat([w.double().reshape(-1) for w in weights]).std(correction=0))


def _tensors(a: float, b: float, weight: Tensor) -> tuple[Tensor, Tensor]:
    # A bfloat16 constant could not move by the small steps it is trained with.
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return weight.new_tensor(a, dtype=dtype), weight.new_tensor(b, dtype=dtype)
