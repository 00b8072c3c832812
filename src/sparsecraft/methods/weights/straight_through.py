"""Weights that train densely and compute sparsely: the base of STE, SR-STE, MDGF and SDGF.

In every forward pass a mask is made anew from the raw weight, and the layer computes with what the
mask leaves. Backwards the gradient passes as if there were no mask, so that every weight goes on
learning and may come back. What is exported is the raw weight under its final mask.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.gradient_flow import whole_steps
from sparsecraft.core.kinds import (
    DEFAULT_SPARSITY,
    Clock,
    InTraining,
    Layers,
    Tensors,
    TrainedLayer,
    WeightMethod,
)
from sparsecraft.core.patterns import NM, Pattern, parse_pattern
from sparsecraft.core.scores import check_finite
from sparsecraft.core.straight_through import straight_through

AXES = ("inputs", "outputs")


@dataclass(frozen=True, kw_only=True)
class ForwardMasked(InTraining, WeightMethod):
    """Computes with the largest weights, recomputed in every forward pass, and trains all.

    Args:
        pattern: Of all layers that `patterns` does not name. For single weights give
            "unstructured" and a sparsity.
        patterns: Patterns of other layers, by globs over target names, such as
            `{"*.q": "2:4", "*.fc?": "1:16"}`; the first glob that matches counts.
        along: Whether N:M groups run along a weight's "inputs", as N:M kernels want it, or along
            its "outputs". Those of a convolution run over channels at one place of the kernel.
        dense: Fraction of the training before the first mask, in [0, 1).
    """

    masked_weights = "live"

    pattern: Pattern = field(default_factory=NM)
    patterns: Mapping[str, str] = field(default_factory=dict)
    along: Literal["inputs", "outputs"] = "inputs"
    dense: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.along not in AXES:
            raise UnknownName("direction of the groups", str(self.along), AXES)
        if not 0 <= self.dense < 1:
            raise InvalidValue(
                f"dense={self.dense} is not allowed: it is a fraction of the training, in [0, 1)"
            )
        texts = {glob: str(parse_pattern(text)) for glob, text in self.patterns.items()}
        object.__setattr__(self, "patterns", texts)

    @property
    def density(self) -> float | None:  # type: ignore[override]
        """Fraction of the targeted weights that is kept, None where layers have their own."""
        return None if self.patterns else super().density

    def pattern_of(self, name: str) -> Pattern:
        """Returns the pattern that the layer of this name ends with."""
        for glob, text in self.patterns.items():
            if fnmatch.fnmatchcase(name, glob):
                return parse_pattern(text)
        return self.pattern

    def pattern_at(self, target: Pattern, clock: Clock) -> Pattern | None:
        """Returns the pattern in force at this step, or None while the layer is dense.

        Args:
            target: The pattern that the layer ends with.
            clock: Where the training stands.
        """
        return target if clock.step >= whole_steps(self.dense, clock.total) else None

    def leak(self, clock: Clock) -> float:
        """Returns what masked weights are multiplied by at this step; 0 for a true mask."""
        return 0.0

    def passes(self, target: Pattern, total: int) -> Iterator[Pattern]:
        """Yields every pattern that a layer goes through on the way to its target."""
        yield target

    def mask(self, weight: Tensor, pattern: Pattern) -> Tensor:
        """Returns the mask of the largest weights that the pattern allows.

        Args:
            weight: (outputs, inputs, *kernel).
            pattern: Which shapes of zeros are allowed.
        """
        density = self._density_of(pattern)
        scores = weight.detach().abs()
        if self.along == "outputs":
            return pattern.tensor_mask(scores.transpose(0, 1), density).transpose(0, 1)
        return pattern.tensor_mask(scores, density)

    def own_parameters(self, weights: Tensors, layers: Layers) -> Mapping[str, Tensors]:
        """Returns none, after checking that every glob of `patterns` means a layer.

        Raises:
            UnknownName: If a glob matches no target.
        """
        for glob in self.patterns:
            if not any(fnmatch.fnmatchcase(name, glob) for name in layers):
                raise UnknownName("layer in `patterns`", glob, layers)
        return {}

    def begin(self, weight: Tensor, layer: TrainedLayer, clock: Clock) -> Tensor:
        """Returns the weight, after checking that it can hold every pattern on the way.

        Raises:
            InvalidValue: If groups do not divide the layer's inputs, or outputs.
        """
        target = self.pattern_of(layer.name)
        for pattern in self.passes(target, clock.total):
            self._check_fits(layer, pattern, target)
        return weight

    def forward(self, weight: Tensor, layer: TrainedLayer, clock: Clock) -> Tensor:
        """Returns the weight with its smallest entries masked; the gradient reaches all of it."""
        leak = self.leak(clock)
        if leak == 1 or (mask := self.mask_now(weight, layer, clock, fresh=True)) is None:
            return weight
        raw = weight.detach()
        value = torch.where(mask, raw, raw * leak if leak else 0.0)
        return straight_through(value, weight)

    def mask_now(
        self, weight: Tensor, layer: TrainedLayer, clock: Clock, *, fresh: bool = False
    ) -> Tensor | None:
        """Returns the mask of this step, or None while the layer is dense.

        Args:
            weight: The raw weight.
            layer: Remembers the mask until the step is over.
            clock: Where the training stands.
            fresh: Whether it is made anew, as every forward pass wants it, rather than taken over
                from the last one of this step.
        """
        if fresh or "mask" not in layer.cache:
            pattern = self.pattern_at(self.pattern_of(layer.name), clock)
            layer.cache["mask"] = None if pattern is None else self.mask(weight, pattern)
        found: Tensor | None = layer.cache["mask"]
        return found

    def active_density(self, layer: TrainedLayer, clock: Clock) -> float:
        """Returns the share of the weight that the layer computes with at this step."""
        pattern = self.pattern_at(self.pattern_of(layer.name), clock)
        return 1.0 if pattern is None or self.leak(clock) else self._density_of(pattern)

    def final_masks(self, weights: Tensors, layers: Layers, clock: Clock) -> dict[str, Tensor]:
        """Returns the masks of the target patterns, wherever the training stands.

        Raises:
            NonFinite: If a weight is NaN or infinite.
        """
        for name in layers:
            check_finite(weights[name], f"{name}: the trained weight")
        return {name: self.mask(weights[name], self.pattern_of(name)) for name in layers}

    def export(self, weight: Tensor, layer: TrainedLayer, clock: Clock) -> Tensor:
        """Returns the raw weight under the mask of its target pattern."""
        return torch.where(self.mask(weight, self.pattern_of(layer.name)), weight, 0.0)

    def _density_of(self, pattern: Pattern) -> float:
        fixed = pattern.fixed_density
        if fixed is not None:
            return fixed
        return 1.0 - (DEFAULT_SPARSITY if self.sparsity is None else self.sparsity)

    def _check_fits(self, layer: TrainedLayer, pattern: Pattern, target: Pattern) -> None:
        length = layer.shape[0] if self.along == "outputs" else layer.shape[1]
        if not isinstance(pattern, NM):
            pattern.check((layer.shape[0], layer.shape[1]), layer.name)
        elif length % pattern.of:
            way = "" if pattern == target else f", on the way to {target},"
            raise InvalidValue(
                f"{layer.name}: {pattern}{way} needs a multiple of {pattern.of} {self.along}, "
                f"but the layer has {length}. Leave it out of the targets, or give it a pattern "
                "of its own in `patterns`."
            )
