"""The runs of claim 17: soups, their candidates and their rivals, from one dense network.

A run gives several arms; its scores are named "arm: metric", and `spread` takes the names apart.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from sparsecraft.core.kinds import Train
from sparsecraft.core.mask import Mask
from sparsecraft.lab.claims import digits
from sparsecraft.lab.claims.beyond_accuracy import beyond_accuracy
from sparsecraft.lab.claims.cells import Cell
from sparsecraft.lab.evidence.table import Row
from sparsecraft.lab.measures import barrier, distance, pairwise
from sparsecraft.methods.weights.soups import (
    Phase,
    PredictionEnsemble,
    SoupOutcome,
    SparseModelSoup,
    imp_average,
    reprune,
)
from sparsecraft.model.batch_norm import recalibrate

SPARSITY = 0.9
PHASES = 3
MODELS = 3
WIDTHS = (16, 32)
EXAMPLES = 300
BATCH = 20
PRETRAINING_RATE = 0.1
WEIGHT_DECAY = 5e-4


def arm(name: str, phase: int = PHASES, sparsity: float = SPARSITY, models: int = MODELS) -> str:
    """Returns the name of an arm, with its phase as the axis of the curve."""
    further = "" if sparsity == SPARSITY else f" at {sparsity:g}"
    further += "" if models == MODELS else f" of {models}"
    return f"{name}{further}, phase={phase}"


def spread(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows with "arm: metric" taken apart: one run of a recipe gives several arms."""
    found = []
    for row in rows:
        name, colon, metric = row.metric.partition(": ")
        found.append(Row(name, row.seed, metric, row.value) if colon else row)
    return found


class Bench:
    """The data, the dense network and the trainings of one cell.

    Args:
        cell: Its settings.
    """

    def __init__(self, cell: Cell) -> None:
        self.settings = cell.settings
        self.seed = cell.seed
        self.data = digits.load_digits(cell.seed)
        part = self.data.train
        self.train = digits.Part(part.images[:EXAMPLES], part.labels[:EXAMPLES])
        self._dense: nn.Module | None = None
        self.recalibrate = partial(recalibrate, batches=self.train.images.split(BATCH))

    def arm(self, name: str, phase: int = PHASES) -> str:
        """Returns the name of an arm of this cell."""
        models = MODELS if name in ("IMP", "random") else self.settings["models"]
        return arm(name, phase, self.settings["sparsity"], models)

    def dense(self) -> nn.Module:
        """Returns the trained dense network, the same for every arm of the seed."""
        if self._dense is None:
            self._dense = digits.convolutional(*WIDTHS, self.seed)
            digits.train(
                self._dense,
                self.train,
                seed=self.seed,
                rate=PRETRAINING_RATE,
                epochs=self.settings["pretraining"],
                batch=BATCH,
            )
        return copy.deepcopy(self._dense)

    def retraining(self, tuning: Sequence[Any]) -> Train:
        """Returns the training that a recipe is given."""
        rate, constant = tuning

        def train(
            model: Any, mask: Mask | None = None, *, branch: str, seed: int = 0, **settings: Any
        ) -> None:
            digits.train(
                model,
                self.train,
                mask,
                seed=seed,
                rate=rate,
                epochs=settings.get("length", self.settings["epochs"]),
                batch=BATCH,
                weight_decay=WEIGHT_DECAY,
                constant=constant,
            )

        return train

    def run(self, tuning: Sequence[Any], **options: Any) -> tuple[nn.Module, SoupOutcome]:
        """Returns the network that a recipe leaves, and its phases."""
        model = self.dense()
        recipe = SparseModelSoup(
            sparsity=self.settings["sparsity"], phases=PHASES, **{"seed": self.seed, **options}
        )
        train = self.retraining(tuning)
        return model, recipe.run(model, train, recalibrate=self.recalibrate)

    def single(self, label: str, tuning: Sequence[Any], longer: int) -> dict[str, float]:
        """Returns the scores of iterative pruning with one copy, phase by phase."""
        model, outcome = self.run(
            tuning,
            models=1,
            vary="length",
            values=(longer * self.settings["epochs"],),
            scope="random" if label == "random" else "global",
        )
        found: dict[str, float] = {}
        for phase in outcome.phases:
            scores = self.scores(self.loaded(model, phase.state))
            found |= _named(self.arm(label, phase.number), scores)
        model.load_state_dict(outcome.state)
        further = {"weights": outcome.mask.kept, **beyond_accuracy(model, self.data.test)}
        return found | _named(self.arm(label), {**further, **_tuned(tuning)})

    def loaded(self, model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
        """Returns a copy of the model with this state."""
        twin = copy.deepcopy(model)
        twin.load_state_dict(state)
        return twin

    def scores(self, model: nn.Module) -> dict[str, float]:
        """Returns the accuracies on test and validation."""
        return {
            "accuracy": digits.accuracy(model, self.data.test),
            "validation accuracy": digits.accuracy(model, self.data.validation),
        }


def soups(bench: Bench) -> dict[str, float]:
    """Returns the arms of a soup: it, its candidates, their ensemble; and the soup tuned freely."""
    runs = []
    for tuning in bench.settings["tuning"]:
        model, outcome = bench.run(tuning, models=bench.settings["models"])
        runs.append((tuning, model, outcome, _phases(bench, model, outcome)))

    def validation(name: str, scores: Mapping[str, float]) -> float:
        return scores[f"{bench.arm(name)}: validation accuracy"]

    constant = [each for each in runs if each[0][1]]
    tuning, model, outcome, found = max(
        constant, key=lambda each: validation("mean candidate", each[3])
    )
    found = found | _beyond(bench, model, outcome.phases[-1]) | _geometry(bench, model, outcome)
    found |= _named(bench.arm("soup"), _tuned(tuning))
    own, own_model, own_outcome, scores = max(runs, key=lambda each: validation("soup", each[3]))
    tuned = {
        metric: scores[f"{bench.arm('soup')}: {metric}"]
        for metric in ("accuracy", "validation accuracy")
    }
    own_model.load_state_dict(own_outcome.state)
    tuned |= {**_tuned(own), **beyond_accuracy(own_model, bench.data.test)}
    return found | _named(bench.arm("tuned soup"), tuned)


def _phases(bench: Bench, model: nn.Module, outcome: SoupOutcome) -> dict[str, float]:
    """Returns the accuracies of soup, candidates and ensemble after each phase."""
    found: dict[str, float] = {}
    for phase in outcome.phases:
        states = [candidate.state for candidate in phase.candidates]
        each = [bench.scores(bench.loaded(model, state)) for state in states]
        arms = {
            "soup": bench.scores(bench.loaded(model, phase.state)),
            "mean candidate": _mean(each),
            # By validation: the best on the test part would be chosen on it.
            "best candidate": max(each, key=lambda scores: scores["validation accuracy"]),
            "ensemble": bench.scores(PredictionEnsemble(model, states)),
        }
        for name, scores in arms.items():
            found |= _named(bench.arm(name, phase.number), scores)
    return found


def _beyond(bench: Bench, model: nn.Module, phase: Phase) -> dict[str, float]:
    """Returns what lies beyond accuracy for the arms of the last phase."""
    test = bench.data.test
    states = [candidate.state for candidate in phase.candidates]
    each = [beyond_accuracy(bench.loaded(model, state), test) for state in states]
    found = _named(bench.arm("mean candidate"), _mean(each))
    found |= _named(bench.arm("ensemble"), beyond_accuracy(PredictionEnsemble(model, states), test))
    soup = beyond_accuracy(bench.loaded(model, phase.state), test)
    return found | _named(bench.arm("soup"), soup)


def _geometry(bench: Bench, model: nn.Module, outcome: SoupOutcome) -> dict[str, float]:
    """Returns how far the last candidates lie apart, and whether their zeros are the soup's."""
    phase = outcome.phases[-1]
    states = [candidate.state for candidate in phase.candidates]
    alive = _alive(phase.state, phase.mask)
    differences = [abs(_alive(state, phase.mask) - alive) for state in states]
    moved = [int(((phase.state[n] != 0) & ~keep).sum()) for n, keep in phase.mask.items()]

    def error(state: Mapping[str, Tensor]) -> float:
        twin = bench.loaded(model, state)
        bench.recalibrate(twin)
        return 1 - digits.accuracy(twin, bench.train)

    distances = pairwise(states, distance)
    return _named(
        bench.arm("soup"),
        {
            "weights": float(alive),
            "largest difference in weights": float(max(*differences, *moved)),
            "distance of candidates": sum(distances.values()) / len(distances),
            "training error barrier": barrier(states[0], states[1], error, points=5),
        },
    )


def _alive(state: Mapping[str, Tensor], mask: Mask) -> int:
    """Returns how many of the masked tensors' entries are not zero."""
    return sum(int((state[name] != 0).sum()) for name in mask)


def averages(bench: Bench) -> dict[str, float]:
    """Returns the average of independent runs, as it is and pruned back; nothing is tuned."""
    tuning = bench.settings["tuning"][0]
    made = [
        bench.run(tuning, models=1, seed=1000 * bench.seed + number)
        for number in range(bench.settings["models"])
    ]
    model = made[0][0]
    union = imp_average(model, [outcome for _, outcome in made], bench.recalibrate)
    found = _named(bench.arm("IMP average"), {**bench.scores(model), "weights": float(union.kept)})
    mask = reprune(model, bench.settings["sparsity"], union, bench.recalibrate)
    again = {**bench.scores(model), "weights": float(mask.kept)}
    return found | _named(bench.arm("IMP average, pruned again"), again)


def _mean(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {metric: sum(each[metric] for each in scores) / len(scores) for metric in scores[0]}


def _named(name: str, scores: Mapping[str, float]) -> dict[str, float]:
    return {f"{name}: {metric}": float(value) for metric, value in scores.items()}


def _tuned(tuning: Sequence[Any]) -> dict[str, float]:
    return {"learning rate": tuning[0], "constant": float(tuning[1])}
