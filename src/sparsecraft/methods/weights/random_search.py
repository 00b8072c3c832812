"""Random search: the baseline that every search for sparse sub-networks must beat.

Farahani (2024) draws random sub-networks of an over-parameterised parent in node space, scores
each untrained, keeps the best, trains it, and compares it with the parent and with one random
sub-network of the same sparsity. Much accuracy survives high sparsity, but the searched networks
are neither better nor faster than the random one. Trial 0 is that random one, so that both come
from the same draws.

The abstract leaves open whether a sub-network inherits the parent's initial weights; it does here,
and `reinit=True` draws new ones for every trial. A low initial loss mostly means small logits, so
the norm of the logits is kept beside every score.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.errors import (
    InvalidValue,
    MissingStatistic,
    NonFinite,
    UnknownName,
    check_sparsity,
)
from sparsecraft.core.kinds import Recipe, Train
from sparsecraft.core.node_space import MODES, Configuration, NodeSpace
from sparsecraft.core.seeds import derive
from sparsecraft.model.compaction import compact
from sparsecraft.model.units import Keep, UnitGroup, apply_units, find_units, run


class Scored(NamedTuple):
    """The loss of an untrained sub-network, and the mean norm of its logits."""

    loss: float
    logit_norm: float


Score = Callable[[nn.Module], Scored]


@dataclass(frozen=True)
class FixedBatch:
    """Scores every sub-network on the same batch, without a gradient.

    Args:
        inputs: A tensor, a tuple of them or a mapping of keywords.
        labels: (n,) class indices.
    """

    inputs: Any
    labels: Tensor

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> Scored:
        """Returns the mean cross-entropy of the model on the batch."""
        output = run(model, self.inputs)
        logits = output if isinstance(output, Tensor) else output.logits
        loss = F.cross_entropy(logits, self.labels.to(logits.device))
        return Scored(float(loss), float(logits.norm(dim=-1).mean()))


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """All trials of a search. Configurations are not kept: the space draws them again.

    Args:
        space: What was drawn from.
        seed: Seed of the draws.
        reinit: Whether each trial had weights of its own.
        losses: (trials,) float64 initial losses; NaN or infinite where a trial failed.
        logit_norms: (trials,) float64.
    """

    space: NodeSpace
    seed: int
    reinit: bool
    losses: Tensor
    logit_norms: Tensor

    @property
    def non_finite(self) -> int:
        """How many trials had no finite loss; they are never the best."""
        return int((~self.losses.isfinite()).sum())

    @property
    def best(self) -> int:
        """The trial with the lowest loss, the first of equal ones.

        Raises:
            NonFinite: If no trial has a finite loss.
        """
        finite = torch.where(self.losses.isfinite(), self.losses, torch.inf)
        if bool(finite.isinf().all()):
            raise NonFinite(
                f"none of {len(finite)} sub-networks has a finite loss. Check the scored batch and "
                "the parent's weights for NaN."
            )
        return int((finite == finite.min()).nonzero()[0])

    @property
    def best_so_far(self) -> Tensor:
        """(trials,) the lowest finite loss up to each trial; infinite before the first."""
        finite = torch.where(self.losses.isfinite(), self.losses, torch.inf)
        return finite.cummin(0).values

    def configuration(self, trial: int | None = None) -> Configuration:
        """Returns the configuration of a trial, by default of the best."""
        return self.space.sample(self.seed, self.best if trial is None else trial)

    def to_json(self) -> dict[str, Any]:
        """Returns plain values from which `from_json` makes the result again."""
        return {
            "widths": dict(self.space.widths),
            "sparsity": self.space.sparsity,
            "mode": self.space.mode,
            "min_keep": self.space.min_keep,
            "seed": self.seed,
            "reinit": self.reinit,
            "losses": [loss if abs(loss) < torch.inf else None for loss in self.losses.tolist()],
            "logit_norms": [n if abs(n) < torch.inf else None for n in self.logit_norms.tolist()],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SearchResult:
        """Returns the result that `to_json` described; failed trials come back as NaN."""
        space = {key: values[key] for key in ("widths", "sparsity", "mode", "min_keep")}
        columns = {
            key: torch.tensor(
                [float("nan") if each is None else each for each in values[key]],
                dtype=torch.float64,
            )
            for key in ("losses", "logit_norms")
        }
        return cls(
            space=NodeSpace(**space), seed=values["seed"], reinit=values["reinit"], **columns
        )


def score_configurations(
    model: nn.Module,
    groups: Sequence[UnitGroup],
    configurations: Iterable[Keep],
    score: Score,
    reinit: Callable[[nn.Module, int], None] | None = None,
) -> list[Scored]:
    """Returns the score of each configuration of the untrained model.

    BatchNorm works with the statistics of the scored batch and keeps none: the running statistics
    of an untrained network would make the loss meaningless. All else is in evaluation mode.

    Args:
        model: The parent; it is left as it was.
        groups: From `find_units`.
        configurations: Group name to bool (size,), True for the units that stay.
        score: Given the masked model.
        reinit: Draws new weights for the trial of this position in place, before the mask.
    """
    scratch = copy.deepcopy(model).eval()
    for module in scratch.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
    parent = model.state_dict()
    scored = []
    for position, keep in enumerate(configurations):
        scratch.load_state_dict(parent)
        if reinit is not None:
            reinit(scratch, position)
        apply_units(scratch, keep, groups)
        scored.append(score(scratch))
    return scored


@method(
    "random_search",
    paper=Paper(
        "Farahani",
        2024,
        "2403.08265",
        number=4,
        title="Random Search as a Baseline for Sparse Neural Network Architecture Search",
    ),
    taxonomy=Taxonomy(
        of="weights",
        when="before training",
        start_to_end="sparse to sparse",
        mask="static",
        criterion="search",
        granularity=("neuron", "channel", "head"),
        allocation="uniform",
        budget="hard per layer",
        needs=("data", "labels", "retraining"),
        cost="one forward pass for each trial, then the training of a small network",
        runtime="wall-clock",
    ),
)
@dataclass(frozen=True, kw_only=True)
class RandomSearch(Recipe):
    """Trains the best of many random sub-networks, chosen untrained, beside a random one.

    Args:
        sparsity: Fraction of hidden nodes that go, in [0, 1).
        mode: "per_layer" keeps the same share of every layer, "global" of all nodes together.
        trials: How many sub-networks are drawn.
        reinit: Whether each draws its own initial weights instead of inheriting the parent's.
        seed: Seed of all draws.

    Reference:
        Farahani, 2024, arXiv 2403.08265.
    """

    sparsity: float = 0.8
    mode: Literal["per_layer", "global"] = "per_layer"
    trials: int = 200
    reinit: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        if self.mode not in MODES:
            raise UnknownName("node space mode", str(self.mode), MODES)
        if self.trials < 1:
            raise InvalidValue(f"trials={self.trials} is not allowed: give at least 1")

    def search(
        self,
        model: nn.Module,
        score: Score,
        *,
        groups: Sequence[UnitGroup] | None = None,
        previous: SearchResult | None = None,
    ) -> SearchResult:
        """Returns `trials` scored trials, after those of a previous search if it is given.

        Args:
            model: The untrained parent.
            score: The same for every trial, for example `FixedBatch`.
            groups: From `find_units`, if they are at hand.
            previous: What to go on from; 100 trials and 100 more are the same as 200.

        Raises:
            InvalidValue: If the previous search drew from another space or with another seed.
            NonFinite: If no trial has a finite loss.
        """
        groups = find_units(model) if groups is None else groups
        space = NodeSpace(
            widths={group.name: group.size for group in groups},
            sparsity=self.sparsity,
            mode=self.mode,
        )
        if previous is None:
            previous = _empty(space, self.seed, self.reinit)
        if (previous.space, previous.seed, previous.reinit) != (space, self.seed, self.reinit):
            raise InvalidValue(
                f"the previous search drew with seed {previous.seed} from {previous.space}, this "
                f"one with seed {self.seed} from {space}. Go on with the same settings."
            )
        first = len(previous.losses)
        scored = score_configurations(
            model,
            groups,
            (space.sample(self.seed, trial) for trial in range(first, first + self.trials)),
            score,
            (lambda scratch, at: self._reinit(scratch, first + at)) if self.reinit else None,
        )
        columns = torch.tensor(scored, dtype=torch.float64).T
        result = SearchResult(
            space=space,
            seed=self.seed,
            reinit=self.reinit,
            losses=torch.cat([previous.losses, columns[0]]),
            logit_norms=torch.cat([previous.logit_norms, columns[1]]),
        )
        _ = result.best  # raises where nothing could be chosen
        return result

    def sub_network(
        self,
        model: nn.Module,
        result: SearchResult,
        trial: int | None = None,
        groups: Sequence[UnitGroup] | None = None,
    ) -> nn.Module:
        """Returns the compact, untrained sub-network of a trial, by default of the best."""
        chosen = result.best if trial is None else trial
        parent = copy.deepcopy(model)
        if self.reinit:
            self._reinit(parent, chosen)
        return compact(parent, result.configuration(chosen), groups=groups)[0]

    def run(
        self,
        model: Any,
        train: Train,
        *,
        score: Score | None = None,
        groups: Sequence[UnitGroup] | None = None,
    ) -> SearchOutcome:
        """Returns the trained arms: the searched sub-network, a random one and the parent.

        Args:
            model: The untrained parent; it is left as it was.
            train: Trains a model in place; it is called for each arm with the arm as branch, and
                must show all of them the same data in the same order.
            score: See `search`.
            groups: From `find_units`, if they are at hand.

        Raises:
            MissingStatistic: If no score is given.
        """
        if score is None:
            raise MissingStatistic(
                "random search scores untrained sub-networks on one fixed batch. "
                "Give score=FixedBatch(inputs, labels)."
            )
        groups = find_units(model) if groups is None else groups
        result = self.search(model, score, groups=groups)
        models = {
            "searched": self.sub_network(model, result, groups=groups),
            "random": self.sub_network(model, result, trial=0, groups=groups),
            "parent": copy.deepcopy(model),
        }
        for branch, each in models.items():
            train(each, branch=branch)
        sizes = {branch: _weights(each) for branch, each in models.items()}
        densities = {branch: size / sizes["parent"] for branch, size in sizes.items()}
        return SearchOutcome(result=result, models=models, weight_densities=densities)

    def _reinit(self, model: nn.Module, trial: int) -> None:
        """Draws all weights anew, from the stream of this trial."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(self.seed, "reinit", trial))
            for name, module in model.named_modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
                elif next(module.parameters(recurse=False), None) is not None:
                    raise InvalidValue(
                        f"reinit=True: {name} ({type(module).__name__}) has parameters but no "
                        "reset_parameters(). Add one, or let sub-networks inherit their weights."
                    )


@dataclass(frozen=True, kw_only=True)
class SearchOutcome:
    """What random search leaves.

    Args:
        result: All trials.
        models: "searched", "random" and "parent", trained; the first two are compact.
        weight_densities: Weights of each relative to the parent's, biases not counted.
    """

    result: SearchResult
    models: Mapping[str, nn.Module]
    weight_densities: Mapping[str, float]


def _empty(space: NodeSpace, seed: int, reinit: bool) -> SearchResult:
    none = torch.zeros(0, dtype=torch.float64)
    return SearchResult(space=space, seed=seed, reinit=reinit, losses=none, logit_norms=none)


def _weights(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.dim() > 1)
