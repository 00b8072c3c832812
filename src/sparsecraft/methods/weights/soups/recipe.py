"""The recipe: prune, retrain the pruned model several times side by side, average, and again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn

from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.errors import InvalidValue, MissingStatistic, UnknownName, check_sparsity
from sparsecraft.core.kinds import Recipe, Train
from sparsecraft.core.mask import Mask
from sparsecraft.core.retraining import norm_drop
from sparsecraft.core.schedules import Exponential
from sparsecraft.core.seeds import derive
from sparsecraft.methods.weights.soups import averaging
from sparsecraft.methods.weights.soups.bench import (
    NO_EVALUATE,
    Bench,
    Evaluate,
    Recalibrate,
    check_recalibrated,
)
from sparsecraft.methods.weights.soups.branches import Branch, Branches
from sparsecraft.methods.weights.soups.outcome import Candidate, Phase, Settings, SoupOutcome
from sparsecraft.model.files import write_atomic
from sparsecraft.model.packed import safetensors_bytes
from sparsecraft.model.shrink import SCOPES, Scope, shrink
from sparsecraft.model.targets import find_targets

Vary = Literal["seed", "weight_decay", "length", "rate"]
VARIED: tuple[Vary, ...] = get_args(Vary)
Choice = Literal["uniform", "greedy"]
CHOICES: tuple[Choice, ...] = get_args(Choice)


@method(
    "sparse_model_soup",
    paper=Paper(
        "Zimmer, Spiegel, Pokutta",
        2023,
        "2306.16788",
        number=17,
        title="Sparse Model Soups: A Recipe for Improved Pruning via Model Averaging",
    ),
    taxonomy=Taxonomy(
        of="weights",
        when="after training",
        start_to_end="dense to sparse",
        mask="shrinking",
        criterion="magnitude",
        granularity=("unstructured",),
        allocation="global",
        budget="hard global",
        needs=("data", "retraining", "pretrained model", "dense weights"),
        cost="several retrainings for each phase, which can run side by side",
        runtime="storage",
    ),
)
@dataclass(frozen=True, kw_only=True)
class SparseModelSoup(Recipe):
    """Retrains the pruned model several times and averages the copies, which share their zeros.

    With one model it is iterative magnitude pruning (IMP); with one model and a length of several
    retrainings it is IMP at the compute of a soup.

    Args:
        sparsity: Fraction of the targeted weights that is zero after the last phase, in (0, 1).
        phases: Cycles of pruning and retraining. Each prunes the same fraction of what is left.
        models: How many copies each phase retrains.
        vary: In what the copies differ: "seed", "weight_decay", "length" or "rate".
        values: What each copy is given for it; seeds may be left out, they count up from `seed`.
        soup: "uniform" averages all copies, "greedy" those that help on held-out data.
        scope: See `shrink`.
        seed: Of everything random that does not vary.
        targets: Which layers; see `find_targets`.

    Example:
        >>> SparseModelSoup(sparsity=0.9, models=2, vary="weight_decay", values=(1e-4, 5e-4)).phases
        3

    Reference:
        Zimmer et al., 2023, arXiv 2306.16788, algorithm 1.
    """

    sparsity: float = 0.9
    phases: int = 3
    models: int = 3
    vary: Vary = "seed"
    values: tuple[float, ...] | None = None
    soup: Choice = "uniform"
    scope: Scope = "global"
    seed: int = 0
    targets: str | None = None

    def __post_init__(self) -> None:
        if not check_sparsity(self.sparsity) > 0:
            raise InvalidValue("sparsity=0 prunes nothing: give a fraction of zeros in (0, 1)")
        for name in ("phases", "models"):
            if getattr(self, name) < 1:
                raise InvalidValue(f"{name}={getattr(self, name)} is not allowed: give at least 1")
        for kind, given, allowed in (
            ("factor to vary", self.vary, VARIED),
            ("soup", self.soup, CHOICES),
            ("scope", self.scope, SCOPES),
        ):
            if given not in allowed:
                raise UnknownName(kind, str(given), allowed)
        self._check_values()

    @property
    def schedule(self) -> Exponential:
        """The density after each phase, by its number from 1: (1 - q)^p."""
        return Exponential(final=1 - self.sparsity, end=self.phases)

    def settings(self, phase: int) -> list[dict[str, Any]]:
        """Returns the keywords that set the trainings of a phase apart.

        Each has a `seed`, different in every phase, and the varied factor by its name.
        """
        given = self.values or tuple(self.seed + index for index in range(self.models))
        if self.vary == "seed":
            return [{"seed": _seed(int(value), phase)} for value in given]
        return [{"seed": _seed(self.seed, phase), self.vary: value} for value in given]

    def run(
        self,
        model: nn.Module,
        train: Train,
        *,
        recalibrate: Recalibrate | None = None,
        evaluate: Evaluate | None = None,
        directory: Path | str | None = None,
        jobs: int = 1,
    ) -> SoupOutcome:
        """Returns all phases; the model is left as the last soup.

        Args:
            model: The trained dense model.
            train: Retrains in place under a mask, with an optimiser of its own. Beside the
                branch, such as "phase 1, candidate 2", it is given `seed`, the varied factor by
                its name, and what `RetrainSchedule` asks for: `norm_drop`, `pruned_fraction`. It
                must draw from `seed` alone, so that copies differ only in what varies.
            recalibrate: Gathers the statistics of batch normalisation anew, in place; a `partial`
                of `sparsecraft.model.batch_norm.recalibrate` with its batches.
            evaluate: The score of a model on held-out data, higher being better; never the test.
            directory: Where finished branches are kept, so that a killed run resumes; see
                `Branches`.
            jobs: How many branches train at once.

        Raises:
            MissingStatistic: If a greedy choice has no `evaluate`, or a model with batch
                normalisation no `recalibrate`.
            InvalidValue: If `train` lacks a keyword or revives pruned weights.
            NonFinite: If a training leaves a weight that is not finite.
        """
        self._check_needs(model, recalibrate, evaluate)
        options: dict[str, Any] = {
            "recalibrate": recalibrate,
            "evaluate": evaluate,
            "directory": directory,
            "jobs": jobs,
        }
        found = find_targets(model, self.targets)
        mask: Mask | None = None
        phases: list[Phase] = []
        for number in range(1, self.phases + 1):
            before = [parameter.detach().clone() for parameter in model.parameters()]
            left = found.numel if mask is None else mask.kept
            density = self.schedule.density(number)
            mask = shrink(model, found, mask, density, scope=self.scope, seed=self.seed)
            mask.apply_(dict(model.named_parameters()))
            cut = {
                "norm_drop": norm_drop(before, model.parameters()),
                "pruned_fraction": 1 - mask.kept / left,
            }
            phases.append(self.retrain(model, mask, train, phase=number, cut=cut, **options))
        return SoupOutcome(tuple(phases))

    def retrain(
        self,
        model: nn.Module,
        mask: Mask,
        train: Train,
        *,
        phase: int = 1,
        cut: Settings | None = None,
        recalibrate: Recalibrate | None = None,
        evaluate: Evaluate | None = None,
        directory: Path | str | None = None,
        jobs: int = 1,
    ) -> Phase:
        """Returns one phase without its pruning; the model is left as the soup.

        So a model that any method made sparse can be branched and averaged, its mask being held.

        Args:
            model: The sparse model.
            mask: Its mask.
            train: See `run`.
            phase: Number of the phase, for the names and seeds of its branches.
            cut: Further keywords of `train` that say what pruning took.
            recalibrate: See `run`.
            evaluate: See `run`.
            directory: See `run`.
            jobs: See `run`.
        """
        self._check_needs(model, recalibrate, evaluate)
        folder = None if directory is None else Path(directory)
        branches = [
            Branch(f"phase {phase}, candidate {index}", {**settings, **(cut or {})})
            for index, settings in enumerate(self.settings(phase), 1)
        ]
        states = Branches(train=train, directory=folder, jobs=jobs).states(model, mask, branches)
        made = self._average(Bench(model, recalibrate, evaluate), states, mask, branches, phase)
        model.load_state_dict(made.state)
        mask.verify(dict(model.named_parameters()))
        if folder is not None:
            write_atomic(folder / f"phase_{phase}.json", json.dumps(made.to_json(), indent=1))
            write_atomic(
                folder / f"phase_{phase}-mask.safetensors", safetensors_bytes(*mask.packed())
            )
        return made

    def _average(
        self,
        bench: Bench,
        states: Sequence[averaging.State],
        mask: Mask,
        branches: Sequence[Branch],
        number: int,
    ) -> Phase:
        fresh = [bench.recalibrated(state) for state in states]
        scores: Sequence[float | None]
        score: float | None
        if len(fresh) == 1:
            state, score = fresh[0], bench.score_or_none(fresh[0])
            scores, weights = [score], [1.0]
        elif self.soup == "greedy":
            greedy = averaging.greedy_soup(states, bench.score, bench.recalibrated, mask)
            state, scores, score = greedy.state, greedy.scores, greedy.score
            weights = [(i in greedy.chosen) / len(greedy.chosen) for i in range(len(fresh))]
        else:
            state = bench.recalibrated(averaging.soup(states, masks=mask))
            scores, score = (
                [bench.score_or_none(each) for each in fresh],
                bench.score_or_none(state),
            )
            weights = [1 / len(fresh)] * len(fresh)
        return Phase(
            number=number,
            mask=mask,
            candidates=tuple(
                Candidate(state=each, settings=branch.settings, score=value)
                for each, branch, value in zip(fresh, branches, scores, strict=True)
            ),
            weights=tuple(weights),
            state=state,
            score=score,
        )

    def _check_values(self) -> None:
        if self.values is None:
            if self.vary != "seed":
                raise InvalidValue(
                    f"vary={self.vary!r} needs values, one for each of the {self.models} models"
                )
            return
        if isinstance(self.values, str) or not isinstance(self.values, Sequence):
            raise InvalidValue(f"values={self.values!r}: give a tuple of numbers, one a model")
        object.__setattr__(self, "values", tuple(self.values))
        if len(self.values) != self.models:
            raise InvalidValue(
                f"{len(self.values)} values of {self.vary} for {self.models} models: give one each"
            )
        if len(set(self.values)) < len(self.values):
            raise InvalidValue(
                f"values={self.values} of {self.vary} hold one twice: copies that train alike "
                "bring nothing to a soup"
            )

    def _check_needs(
        self, model: nn.Module, recalibrate: Recalibrate | None, evaluate: Evaluate | None
    ) -> None:
        if self.soup == "greedy" and evaluate is None:
            raise MissingStatistic(NO_EVALUATE)
        if self.models > 1:
            check_recalibrated(model, recalibrate)


def _seed(seed: int, phase: int) -> int:
    """Returns a seed that every generator takes, also those of 32 bits."""
    return derive(seed, "phase", phase) % 2**31
