"""Methods that make weights sparse while they train."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from sparsecraft.core.kinds.base import Method, WeightMethod
from sparsecraft.core.seeds import generator
from sparsecraft.core.statistics import Statistic


@dataclass(frozen=True)
class Clock:
    """Where the training stands, in optimiser steps.

    Args:
        step: Steps finished before the present one; the first step has 0.
        total: Steps of the whole training.
        rate: Learning rate of the present step, of the first targeted parameter's group.
    """

    step: int
    total: int
    rate: float = 0.0

    @property
    def done(self) -> int:
        """Steps finished when the present one is over."""
        return self.step + 1


@dataclass(eq=False)
class TrainedLayer:
    """What an InTraining method sees and remembers of one target.

    Args:
        name: Target name.
        shape: (outputs, inputs) or (outputs, inputs, *kernel); a vector has (entries,).
        seed: The run's seed.
        mask: bool of `shape`, True where kept; None while the layer is dense.
        state: Tensors of the method, saved and resumed with the training.
        cache: Anything that can be computed again; never saved.
        statistics: Of its input in this step, where the method declared any and it is due.
        parameters: The method's own trained parameters of this layer, see `own_parameters`.
    """

    name: str
    shape: tuple[int, ...]
    seed: int = 0
    mask: Tensor | None = None
    state: dict[str, Tensor] = field(default_factory=dict)
    cache: dict[str, Any] = field(default_factory=dict)
    statistics: Mapping[type[Statistic], Tensor] = field(default_factory=dict)
    parameters: Mapping[str, Tensor] = field(default_factory=dict)

    def generator(self, *labels: object) -> torch.Generator:
        """Returns this layer's random stream of these labels, for example ("grow", step)."""
        return generator(self.seed, "layer", self.name, *labels)


Tensors = Mapping[str, Tensor]


Layers = Mapping[str, TrainedLayer]


@dataclass(frozen=True, kw_only=True)
class InTraining(Method):
    """Makes weights sparse while they train; overrides only the hooks it has.

    The host, `sparsecraft.Sparsifier`, keeps the clock, the masks by name, the optimiser's
    moments, the ranks and the checkpoints. Weights come as (outputs, inputs, *kernel), by target
    name; in `units` and `step_units` whole parameters come, by parameter name.

    The order of a step: `forward` in every forward pass, `loss` when the caller adds it,
    `edit_gradient`, the optimiser, `after_step`, `step_units`, and where `due`, `update_masks`.

    `masked_weights` says what becomes of masked weights. "frozen" ones are zero, get no gradient
    and no moments until `update_masks` revives them, from zero. "live" ones train on, and are
    zero only in what `forward` gives and in what is exported.
    """

    masked_weights: ClassVar[Literal["frozen", "live"]] = "frozen"
    dense_gradients: ClassVar[bool] = False
    """Whether `update_masks` needs the gradient of masked weights too; only where it is due."""
    statistics: ClassVar[tuple[type[Statistic], ...]] = ()
    """What `update_masks` needs of the layers' inputs, gathered in the forward passes of steps
    where it is due, and found in `layer.statistics`."""
    captures: ClassVar[tuple[str, ...]] = ()
    """What `loss` needs of the forward pass: of "logits", "teacher", "attention", "hidden"."""
    optimizer_type: ClassVar[type | None] = None
    """The optimiser without which the method is not itself; `attach` refuses any other."""

    def targets(self, model: Any, select: Any) -> Any:
        """Returns the targets, or None for those that `find_targets(model, select)` gives."""
        return None

    def check_optimizer(self, optimizer: Any) -> None:
        """Raises InvalidValue where the method is not itself with this optimiser."""

    def start(self) -> WeightMethod | None:
        """Returns the method that makes the mask to begin with, or None for a dense start."""
        return None

    def own_parameters(self, weights: Tensors, layers: Layers) -> Mapping[str, Tensors]:
        """Returns initial values of the method's own trained parameters, by target and name.

        One tensor given for several targets makes one parameter that they share.
        """
        return {}

    def own_options(self) -> Mapping[str, float]:
        """Returns how own parameters train: "rate_scale" of the learning rate, "weight_decay"."""
        return {}

    def begin(self, weight: Tensor, layer: TrainedLayer, clock: Clock) -> Tensor:
        """Returns the weight to start with, after the mask of `start` has been applied."""
        return weight

    def forward(self, weight: Tensor, layer: TrainedLayer, clock: Clock) -> Tensor:
        """Returns what the layer computes with in place of its weight, differentiably."""
        return weight

    def loss(self, captured: Mapping[str, Any], weights: Tensors, clock: Clock) -> Tensor | None:
        """Returns what is added to the task's loss, or None.

        Args:
            captured: "logits" and "teacher" logits, lists of "attention" maps (batch, heads,
                queries, keys) and of "hidden" states, of the last forward pass, and its "inputs".
            weights: The raw weights, with gradient.
            clock: Where the training stands.
        """
        return None

    def edit_gradient(
        self, weight: Tensor, gradient: Tensor, layer: TrainedLayer, clock: Clock
    ) -> Tensor:
        """Returns the gradient that the optimiser shall see; it may be changed in place."""
        return gradient

    def after_step(self, weight: Tensor, layer: TrainedLayer, clock: Clock) -> Tensor:
        """Returns the weight after the optimiser's step, for example its prox."""
        return weight

    def after_step_due(self, clock: Clock) -> bool:
        """Returns whether `after_step` does anything at the end of this step.

        Where parameters are sharded over ranks, every one of them is gathered for it.
        """
        return True

    def active_density(self, layer: TrainedLayer, clock: Clock) -> float | None:
        """Returns the share of the weight that `forward` computes with, for the cost accounts.

        None stands for the density of the layer's mask, 1 without one.
        """
        return None

    def units(self, model: Any, example_input: Any = None) -> Any:
        """Returns the groups of entries that `step_units` works on, found once.

        Args:
            model: The model.
            example_input: A small input by which they are found, where the caller has one.
        """
        return None

    def keeps_previous(self, clock: Clock) -> bool:
        """Returns whether `step_units` needs the parameters from before this step."""
        return False

    def step_units(
        self,
        units: Any,
        parameters: Tensors,
        previous: Tensors | None,
        state: dict[str, Tensor],
        clock: Clock,
    ) -> Tensors:
        """Changes whole groups after the optimiser's step, in place.

        Args:
            units: What `units` returned.
            parameters: Every parameter of the model by name, whole.
            previous: The same before the step, where `keeps_previous`.
            state: Tensors of the method for the whole model, saved and resumed.
            clock: Where the training stands.

        Returns:
            Parameter name to bool, True for entries whose moments are to be cleared.
        """
        return {}

    def due(self, clock: Clock) -> bool:
        """Returns whether `update_masks` is called at the end of this step."""
        return False

    def update_masks(
        self, weights: Tensors, gradients: Tensors, layers: Layers, clock: Clock
    ) -> Tensors:
        """Returns new masks by target name; layers left out keep theirs.

        Args:
            weights: After the step.
            gradients: Of this step, by target name; of all weights where `dense_gradients`.
            layers: With the masks so far.
            clock: Where the training stands.
        """
        return {}

    def final_masks(self, weights: Tensors, layers: Layers, clock: Clock) -> Tensors:
        """Returns the masks of the finished model by target name; layers left out are dense."""
        return {name: layer.mask for name, layer in layers.items() if layer.mask is not None}

    def finish_units(
        self, units: Any, parameters: Tensors, state: dict[str, Tensor], clock: Clock
    ) -> None:
        """Changes whole groups a last time, in place, for example down to exactly k of them."""

    def export(self, weight: Tensor, layer: TrainedLayer, clock: Clock) -> Tensor:
        """Returns the weight of the finished model; the host then applies the final mask.

        By default what `forward` gives. A method that computes with more than one matrix can say
        (its `surgery`) gives the part that the layer's own weight keeps.
        """
        return self.forward(weight, layer, clock)

    def remarks(self, weights: Tensors, layers: Layers, clock: Clock) -> Iterable[str]:
        """Returns what the report shall say of this training beside the figures, in plain words."""
        return ()

    def surgery(self, model: Any, layers: Layers) -> Any:
        """Returns the finished model, by default itself; side branches are put in place here."""
        return model
