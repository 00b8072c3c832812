"""The kinds of method: what a method says, so that its host can do the rest.

A method is a frozen description. Hooks, devices, ranks, files and progress belong to the host in
`sparsecraft.model`; a method sees tensors and the few things named here. Weights are always shown
as matrices (outputs, inputs), by target name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from sparsecraft.core.allocation import Allocation, Uniform
from sparsecraft.core.errors import InvalidValue, MissingStatistic, check_sparsity
from sparsecraft.core.gating import ActivationGate
from sparsecraft.core.mask import Mask
from sparsecraft.core.patterns import Pattern, Unstructured
from sparsecraft.core.seeds import generator
from sparsecraft.core.statistics import Statistic
from sparsecraft.core.thresholds import exact_threshold

if TYPE_CHECKING:
    from sparsecraft.core.catalog import MethodInfo

DEFAULT_SPARSITY = 0.5
Role = Literal["attention", "feed-forward", "expert"]
Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Pruned:
    """A weight after pruning.

    Args:
        weight: (outputs, inputs), zero wherever the mask is False.
        mask: bool (outputs, inputs), True where kept.
        facts: Anything worth a number in the report of this layer, by what it is.
    """

    weight: Tensor
    mask: Tensor
    facts: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def keeping(
        cls, weight: Tensor, mask: Tensor, facts: Mapping[str, float] | None = None
    ) -> Pruned:
        """Returns the weight with everything outside the mask set to positive zero."""
        return cls(weight.masked_fill(~mask, 0), mask, facts or {})


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Base of every method; `info` is what it registered in the catalog."""

    info: ClassVar[MethodInfo]


@dataclass(frozen=True, kw_only=True)
class WeightMethod(Method):
    """A method that leaves a fraction of the weights.

    Args:
        sparsity: Fraction of the targeted weights set to zero, in [0, 1). An N:M pattern implies
            it; otherwise 0.5 unless given.
        pattern: Which shapes of zeros are allowed.
    """

    sparsity: float | None = None
    pattern: Pattern = field(default_factory=Unstructured)

    def __post_init__(self) -> None:
        fixed = self.pattern.fixed_density
        if self.sparsity is None:
            return
        check_sparsity(self.sparsity)
        if fixed is not None and abs(1 - self.sparsity - fixed) > 1e-9:
            raise InvalidValue(
                f"sparsity={self.sparsity:g} contradicts the pattern {self.pattern}, which implies "
                f"{1 - fixed:g}. Leave the sparsity out, or give sparsity={1 - fixed:g}."
            )

    @property
    def density(self) -> float:
        """Fraction of the targeted weights that is kept."""
        fixed = self.pattern.fixed_density
        if fixed is not None:
            return fixed
        return 1.0 - (DEFAULT_SPARSITY if self.sparsity is None else self.sparsity)

    @property
    def deterministic(self) -> bool:
        """Whether the seed changes nothing but the calibration data drawn with it."""
        return self.info.taxonomy.criterion != "random"


@dataclass(frozen=True)
class Layer:
    """What a Layerwise method knows of the layer it prunes.

    Args:
        name: Target name.
        density: Fraction of this layer to keep; the allocation's share.
        seed: The run's seed.
        statistics: The statistics the method declared, of this layer's input.
        role: What it is in its block, where the method asks; None outside the blocks.
    """

    name: str
    density: float
    seed: int = 0
    statistics: Mapping[type[Statistic], Tensor] = field(default_factory=dict)
    role: Role | None = None

    def __getitem__(self, statistic: type[Statistic]) -> Tensor:
        """Returns the value of a declared statistic.

        Raises:
            MissingStatistic: If it was not gathered.
        """
        if statistic not in self.statistics:
            raise MissingStatistic(
                f"{self.name}: no {statistic.__name__} of its input was gathered. "
                "Give calibration data (calibration=..., --calibration text.txt)."
            )
        return self.statistics[statistic]

    def generator(self) -> torch.Generator:
        """Returns this layer's own random stream."""
        return generator(self.seed, "layer", self.name)


@dataclass(frozen=True, kw_only=True)
class Layerwise(WeightMethod):
    """Prunes one matrix at a time, knowing only that matrix and its input.

    Args:
        allocation: How the budget is shared between the layers.
    """

    allocation: Allocation = field(default_factory=Uniform)
    statistics: ClassVar[tuple[type[Statistic], ...]] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pattern.fixed_density is not None and self.allocation != Uniform():
            raise InvalidValue(
                f"allocation {type(self.allocation).__name__} contradicts the pattern "
                f"{self.pattern}, which fixes every layer's density. Use the uniform allocation."
            )

    @property
    def needs_roles(self) -> bool:
        """Whether the method asks for the role of a layer; it is found by tracing the model."""
        return False

    def check_layers(self, roles: Mapping[str, Role | None]) -> None:
        """Raises NoMatch if a setting names layers and these have none of them.

        Args:
            roles: Every target's name, and its role where the method asks for roles.
        """

    @abstractmethod
    def prune(self, weight: Tensor, layer: Layer) -> Pruned:
        """Returns the pruned matrix.

        Args:
            weight: (outputs, inputs), float32.
            layer: Name, density, seed and statistics.
        """


class ModelContext(Protocol):
    """What a ModelWide method may ask of the model; the user's model stays untouched."""

    seed: int

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Layer shapes (out, in, *kernel) by target name, in model order."""

    def generator(self, *labels: object) -> torch.Generator:
        """Returns the random stream of these labels."""

    def batches(self) -> Sequence[Batch]:
        """Returns the calibration batches; raises MissingStatistic if there are none."""

    def loss(
        self, weights: Mapping[str, Tensor], batch: Batch, *, temperature: float = 1
    ) -> Tensor:
        """Returns the loss with these weights in place of the model's, differentiable in them.

        Args:
            weights: Matrices by target name.
            batch: Inputs and labels.
            temperature: Divides the logits before the loss.
        """

    def flow(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Returns the summed output for an input of ones, all other parameters made positive."""


@dataclass(frozen=True, kw_only=True)
class ModelWide(WeightMethod):
    """Prunes all matrices together: scores are compared across layers."""

    needs_batches: ClassVar[bool] = False

    @abstractmethod
    def prune(self, weights: Mapping[str, Tensor], context: ModelContext) -> dict[str, Pruned]:
        """Returns every matrix pruned.

        Args:
            weights: (outputs, inputs) by target name, in model order.
            context: Losses and gradients on a copy of the model.
        """

    def globally(
        self, weights: Mapping[str, Tensor], scores: Mapping[str, Tensor]
    ) -> dict[str, Pruned]:
        """Returns the weights pruned to the highest scores over all of them together."""
        masks = self.pattern.global_masks(list(scores.values()), self.density)
        return {
            name: Pruned.keeping(weights[name], mask)
            for name, mask in zip(scores, masks, strict=True)
        }


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


@dataclass(frozen=True)
class GateSite:
    """What a Gate method knows of one place where activations are gated.

    Args:
        name: Name of the module whose input (or output) is gated.
        features: Entries of a token there.
        sparsity: Fraction of a token's entries to drop there, in [0, 1); the allocation's share.
        weight: (outputs, features), float32, the matrix that the entries are multiplied with;
            None where the output of an activation function is gated.
        orthogonal: Whether the matrix is one that the rotation gives orthogonal columns.
        values: (tokens, features), the calibration activations there, or None.
        seed: The run's seed.
    """

    name: str
    features: int
    sparsity: float
    weight: Tensor | None = None
    orthogonal: bool = False
    values: Tensor | None = None
    seed: int = 0

    def keep(self) -> int:
        """Returns int(features * (1 - sparsity)), what a token keeps under an exact count.

        Raises:
            InvalidValue: If that is nothing.
        """
        keep = int(self.features * (1 - self.sparsity))
        if keep < 1:
            raise InvalidValue(
                f"{self.name}: sparsity {self.sparsity:g} of {self.features} entries keeps none. "
                f"Ask for at most {_most_sparsity(self.features):g} there, or leave it out of the "
                "targets."
            )
        return keep

    def threshold(self, norms: Tensor | None = None) -> float:
        """Returns what the calibration scores exceed in exactly the share 1 - sparsity.

        Args:
            norms: (features,) factors of the scores, or None for ones.

        Raises:
            MissingStatistic: If there are no calibration values.
        """
        if self.values is None:
            raise MissingStatistic(
                f"{self.name}: a threshold is chosen on data, and none was given or none reached "
                "this place. Give calibration data (calibration=..., --calibration text.txt), or "
                'keep an exact count (rule="topk").'
            )
        scores = ActivationGate(threshold=0.0, norms=norms).scores(self.values)
        return exact_threshold(scores, self.sparsity)


@dataclass(frozen=True, kw_only=True)
class Gate(Method):
    """Makes activations sparse at inference, differently for each token.

    The host, `sparsecraft.gate`, finds the places, gathers the calibration activations, puts the
    gates in as hooks, and saves them. A method says what is gated and fits one gate to each place.
    """

    sites: ClassVar[Literal["inputs", "gated activations", "activations"]] = "inputs"
    """What is gated: the inputs of the targeted matrices, or what the activation function of an
    MLP gives: of those with a gate branch only, or of any."""

    @abstractmethod
    def asked(self, features: int) -> float:
        """Returns the sparsity asked where a token has this many entries, in [0, 1)."""

    @abstractmethod
    def fit(self, site: GateSite) -> ActivationGate:
        """Returns the gate of one place.

        Args:
            site: Its width, share, weight and calibration activations.
        """

    def prepare(self, model: Any) -> Any:
        """Changes the model before its places are found, such as by a rotation.

        Returns:
            What takes it back by `undo()`; None if nothing was changed. If it has a `report`, the
            `notes` of that are told to the user.
        """
        return None

    def needs_values(self) -> bool:
        """Returns whether `fit` needs calibration activations."""
        return False

    def greedy_step(self) -> float | None:
        """Returns the step of a greedy allocation within each block, None for a uniform one."""
        return None

    def on_gated_inputs(self) -> bool:
        """Returns whether a block is calibrated on what comes through the gated ones before it."""
        return False

    def remarks(self) -> Iterable[str]:
        """Returns what the report shall say beside the figures, in plain words."""
        return ()


def _most_sparsity(features: int) -> float:
    """Returns a sparsity, rounded down, at which one entry of so many is kept."""
    return int((1 - 1 / features) * 1000) / 1000


class Train(Protocol):
    """The caller's training: methods never know the task."""

    def __call__(self, model: Any, mask: Mask | None = None, *, branch: str) -> None:
        """Trains the model in place; entries that the mask prunes stay zero.

        A recipe whose branches differ in a setting (soups) gives it as a further keyword, such as
        `seed` or `weight_decay`, and one that trains under a method (Sparse-IFT) gives
        `sparsifier`, a function of the number of steps that returns the Sparsifier to attach. The
        recipe says so; a training for it takes these keywords.

        Args:
            model: A torch module.
            mask: What to hold at zero, by parameter name.
            branch: Name of this training, for seeds, progress and resuming.
        """


@dataclass(frozen=True, kw_only=True)
class Recipe(Method):
    """Several trainings, prunings and surgeries in a row."""

    @abstractmethod
    def run(self, model: Any, train: Train) -> Any:
        """Returns the outcome; see the method for its type."""


@dataclass(frozen=True, kw_only=True)
class Evaluation(Method):
    """Measures instead of changing."""

    @abstractmethod
    def measure(self, model: Any, data: Iterable[Batch]) -> dict[str, float]:
        """Returns the measured figures by name."""
