"""Static sparse training: a mask from any pruning method, held while the network trains.

What the rules of dynamic sparse training bring is seen only beside a mask that never changes (Liu
and Wang, 2023): each of them has a static twin, which starts with the same mask and keeps it. With
SNIP under an N:M pattern as the source this is SNIP-ST, a baseline of Bambhaniya et al. (2024).

`shuffled=True` is the other control of the handbook: every layer keeps as many weights as the
source would, at random places. A mask whose entries are permuted is a random one of that count, so
it is drawn as such, under the same pattern.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from sparsecraft.core.allocation import ERK
from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.kinds import (
    Clock,
    InTraining,
    Layers,
    Layerwise,
    ModelWide,
    Tensors,
    WeightMethod,
)
from sparsecraft.core.patterns import Unstructured
from sparsecraft.methods.weights.random import Random
from sparsecraft.methods.weights.ratios import RandomRatios


def _by_default() -> Random:
    return Random(allocation=ERK())


@method(
    "static",
    paper=Paper(
        "Mocanu et al.",
        2016,
        "1604.05978",
        title="A topological insight into restricted Boltzmann machines",
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
        needs=("data", "labels"),
        cost="that of the source, then sparse steps",
        runtime="FLOPs",
    ),
)
@dataclass(frozen=True, kw_only=True)
class Static(InTraining, WeightMethod):
    """Trains under a mask that is made once, before the first step.

    Args:
        sparsity: Fraction of zeros; given here or in the source.
        pattern: Which shapes of zeros are allowed; given here or in the source.
        source: The method that makes the mask, such as random, snip, synflow or magnitude; by
            default random with ERK densities, or with those of an N:M pattern.
        shuffled: Whether the entries of that mask are permuted within each layer, the control
            that tells whether places matter or only the densities of the layers.

    Example:
        >>> Static(sparsity=0.9).start().density
        0.09999999999999998

    Reference:
        Mocanu et al., 2016, arXiv 1604.05978; Liu, Wang, 2023, arXiv 2302.02596, lesson 5.
    """

    source: Layerwise | ModelWide = field(default_factory=_by_default)
    shuffled: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.source, Layerwise | ModelWide):
            raise InvalidValue(
                f"the source of a static mask is a Layerwise or ModelWide method such as random, "
                f"snip or magnitude, not {self.source!r}"
            )
        super().__post_init__()
        if self.shuffled and self.source.info.taxonomy.criterion == "random":
            raise InvalidValue(
                f"shuffled=True would make one random mask of another: {self.source.info.name} is "
                "random already. Use it as it is, or another source such as snip."
            )
        self.start()

    @property
    def density(self) -> float:
        """Fraction of the targeted weights that is kept."""
        return self.start().density

    def start(self) -> WeightMethod:
        """Returns the method that makes the mask, at this sparsity and pattern.

        Raises:
            InvalidValue: If the source has another sparsity or pattern of its own.
        """
        source = self._settled()
        if not self.shuffled:
            return source
        if isinstance(source, Layerwise):
            return Random(
                sparsity=source.sparsity, pattern=source.pattern, allocation=source.allocation
            )
        if source.pattern.fixed_density is not None:
            return Random(pattern=source.pattern)
        return RandomRatios(
            sparsity=1 - source.density,
            pattern=source.pattern,
            ratios_of=replace(source, sparsity=None),
        )

    def update_masks(
        self, weights: Tensors, gradients: Tensors, layers: Layers, clock: Clock
    ) -> Tensors:
        """Returns no new masks: that of the start is all that is ever active."""
        return {}

    def _settled(self) -> Layerwise | ModelWide:
        """Returns the source with the sparsity and the pattern of either of the two."""
        source = self.source
        for name, ours, theirs, unset in (
            ("sparsity", self.sparsity, source.sparsity, None),
            ("pattern", self.pattern, source.pattern, Unstructured()),
        ):
            if ours != unset and theirs not in (unset, ours):
                raise InvalidValue(
                    f"static: {name}={ours} beside {name}={theirs} in its source "
                    f"{source.info.name}: give it once"
                )
        pattern = source.pattern if self.pattern == Unstructured() else self.pattern
        sparsity = source.sparsity if self.sparsity is None else self.sparsity
        if source == _by_default() and pattern.fixed_density is not None:
            # N:M says what each layer keeps, so that there is nothing to share out.
            return Random(sparsity=sparsity, pattern=pattern)
        return replace(source, sparsity=sparsity, pattern=pattern)


def static_twin(dynamic: InTraining) -> Static:
    """Returns the method that starts as `dynamic` does and never changes the mask.

    Under one seed the two begin with the same mask: what differs afterwards is what the updates
    bring.

    Args:
        dynamic: A method that begins with a mask, such as RigL.

    Raises:
        InvalidValue: If it begins dense.

    Example:
        >>> static_twin(Static(sparsity=0.8)).density == Static(sparsity=0.8).density
        True

    Reference:
        Liu, Wang, 2023, arXiv 2302.02596, lesson 5.
    """
    source = dynamic.start()
    if not isinstance(source, Layerwise | ModelWide):
        raise InvalidValue(
            f"{dynamic.info.name} begins dense, so that it has no static twin. Compare it with "
            'the method "static" at its final sparsity.'
        )
    return Static(source=source)
