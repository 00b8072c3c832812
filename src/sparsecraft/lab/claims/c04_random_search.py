"""Claim 04: searching for a random sub-network brings nothing over drawing one.

Farahani (2024) draws random sub-networks in node space, keeps the one with the lowest loss before
training and trains it: it ends no better than a single random draw of the same sparsity, and
gets there no faster. Here a fully connected network learns digits; of its two hidden layers of 256
a fifth stays. "No better" is stated as a margin that the search must not exceed, since an absence
cannot be shown: the claim holds if the whole interval lies below the margin, and it does not hold
if the whole interval lies above it.

The searched and the random network come from the same draws (the random one is the first of them),
inherit the same initial weights, and see the same data in the same order. Nothing is tuned and
nothing is chosen by accuracy, so that both training and validation images train; the test images
are only scored. The search signal itself is tested on further random draws, trained without any
search: the rank correlation of their loss before and after training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecraft.core.catalog import Paper
from sparsecraft.core.seeds import generator
from sparsecraft.lab.claims import digits
from sparsecraft.lab.claims.cells import Cell, Cells
from sparsecraft.lab.claims.claim import Budget, Claim, Contrast, FullScale
from sparsecraft.lab.evidence.table import Row, spearman
from sparsecraft.lab.evidence.verdict import StatedDifference
from sparsecraft.methods.weights.random_search import FixedBatch, RandomSearch

WIDTHS = (64, 256, 256, digits.CLASSES)
RATE = 1e-3
BATCH = 64
EPOCHS = 30
TRIALS = 200
DRAWS = 30
TRAINED = 0.95  # the training accuracy by which speed is told
STATED_SPARSITY = 0.8
SMALL_SPARSITIES = (0.8, 0.95)
FULL_SPARSITIES = (0.5, 0.8, 0.9, 0.95)
# The most that a search may gain before it counts as better: half a point, 5 of 997 test images.
ACCURACY_MARGIN = 0.005
# The same for speed: one epoch of 30.
EPOCH_MARGIN = 1.0


def arm(name: str, sparsity: float = STATED_SPARSITY) -> str:
    """Returns the name of an arm, with its sparsity as the axis of the curve."""
    return f"{name}, sparsity={sparsity:g}"


STATED = (
    Contrast(
        stated=StatedDifference(
            text=(
                "at sparsity 0.8 the searched network's test accuracy is less than "
                f"{ACCURACY_MARGIN:g} above the random one's"
            ),
            unit=f"of {ACCURACY_MARGIN:g} accuracy allowed unused",
            direction="greater",
        ),
        metric="accuracy",
        terms={arm("random"): 1.0, arm("searched"): -1.0},
        constant=ACCURACY_MARGIN,
    ),
    Contrast(
        stated=StatedDifference(
            text=(
                f"at sparsity 0.8 the searched network reaches {TRAINED:g} training accuracy less "
                f"than {EPOCH_MARGIN:g} epoch before the random one"
            ),
            unit=f"of {EPOCH_MARGIN:g} epoch allowed unused",
            direction="greater",
        ),
        metric="epochs to 0.95",
        terms={arm("searched"): 1.0, arm("random"): -1.0},
        constant=EPOCH_MARGIN,
    ),
)


def run(budget: Budget, seeds: Sequence[int], cells: Cells) -> list[Row]:
    """Returns accuracy, speed and initial loss of every arm; see the module."""
    return cells.rows(measure, [cell for seed in seeds for cell in _grid(budget, seed)])


def _grid(budget: Budget, seed: int) -> Iterator[Cell]:
    smoke = budget == "smoke"
    lengths = {"epochs": 2 if smoke else EPOCHS, "trials": 10 if smoke else TRIALS}
    yield Cell("parent", seed, {"kind": "parent", "sparsity": 0.0, **lengths})
    sparsities = {"smoke": (STATED_SPARSITY,), "small": SMALL_SPARSITIES, "full": FULL_SPARSITIES}
    for sparsity in sparsities[budget]:
        for kind in ("searched", "random"):
            yield Cell(arm(kind, sparsity), seed, {"kind": kind, "sparsity": sparsity, **lengths})
    for sparsity in FULL_SPARSITIES if budget == "full" else (STATED_SPARSITY,):
        settings = {
            "kind": "signal",
            "sparsity": sparsity,
            **lengths,
            "trials": 5 if smoke else DRAWS,
        }
        yield Cell(arm("search signal", sparsity), seed, settings)


def measure(cell: Cell) -> dict[str, float]:
    """Returns what one arm, or the test of the search signal, gives for one seed."""
    train, test = _data(cell.seed)
    parent = _parent(cell.seed)
    score = FixedBatch(train.images, train.labels)
    kind, epochs = cell.settings["kind"], cell.settings["epochs"]
    if kind == "parent":
        found = score(parent)
        before = {"initial loss": found.loss, "logit norm": found.logit_norm, "weight density": 1.0}
        return {**before, **_trained(parent, train, test, cell.seed, epochs)}
    search = RandomSearch(
        sparsity=cell.settings["sparsity"],
        trials=1 if kind == "random" else cell.settings["trials"],
        seed=cell.seed,
    )
    result = search.search(parent, score)
    if kind == "signal":
        after = [
            _trained(search.sub_network(parent, result, trial), train, test, cell.seed, epochs)
            for trial in range(search.trials)
        ]
        losses = result.losses.tolist()
        return {
            f"spearman of initial loss and {metric}": spearman(losses, [a[metric] for a in after])
            for metric in ("test loss", "accuracy")
        }
    chosen = search.sub_network(parent, result)
    return {
        "initial loss": float(result.losses[result.best]),
        "logit norm": float(result.logit_norms[result.best]),
        "weight density": digits.prunable(chosen) / digits.prunable(parent),
        **_trained(chosen, train, test, cell.seed, epochs),
    }


def _data(seed: int) -> tuple[digits.Part, digits.Part]:
    """Returns what trains, flat, and the test part."""
    data = digits.load_digits(seed)
    images = torch.cat([data.train.images, data.validation.images]).flatten(1)
    labels = torch.cat([data.train.labels, data.validation.labels])
    return digits.Part(images, labels), digits.Part(data.test.images.flatten(1), data.test.labels)


def _parent(seed: int) -> nn.Sequential:
    """Returns the fully connected parent, Kaiming normal with zero biases."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(WIDTHS):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter, generator=generator(seed, "initial", name))
        else:
            nn.init.zeros_(parameter)
    return model


def _trained(
    model: nn.Module, train: digits.Part, test: digits.Part, seed: int, epochs: int
) -> dict[str, float]:
    """Trains in place by Adam; returns the final test scores and the speed."""
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    order = generator(seed, "order")
    reached = float(epochs + 1)  # one more than there are, where the accuracy is never reached
    for epoch in range(1, epochs + 1):
        for index in torch.randperm(len(train.labels), generator=order).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(train.images[index]), train.labels[index]).backward()
            optimizer.step()
        if digits.accuracy(model, train) >= TRAINED:
            reached = min(reached, float(epoch))
    return {
        "accuracy": digits.accuracy(model, test),
        "test loss": _loss(model, test),
        "train loss": _loss(model, train),
        "epochs to 0.95": reached,
    }


@torch.no_grad()
def _loss(model: nn.Module, data: digits.Part) -> float:
    logits: Tensor = model(data.images)
    return float(F.cross_entropy(logits, data.labels))


_METHODS: tuple[Mapping[str, Any], ...] = tuple(
    {"method": "random_search", "sparsity": sparsity, "trials": TRIALS}
    for sparsity in (0.1, 0.5, 0.9, 0.99)
)

CLAIM = Claim(
    number=4,
    title="Random search for a sparse sub-network ends no better and no sooner than a random draw",
    paper=Paper(
        "Farahani",
        2024,
        "2403.08265",
        number=4,
        title="Random Search as a Baseline for Sparse Neural Network Architecture Search",
    ),
    version=1,
    stated=STATED,
    scale="0.08M parameters, digits",
    full_scale=FullScale(
        model="over-parameterised fully connected and convolutional networks",
        data="MNIST and CIFAR-10",
        recipe=(
            "Score random sub-networks untrained, train the best, a random one and the parent with "
            "the same optimiser, epochs and order. The paper's widths and rates were not at hand: "
            "only its abstract was."
        ),
        methods=_METHODS,
        hyperparameters={"trials": TRIALS, "rate": RATE, "batch": BATCH},
    ),
    seeds={"smoke": 1, "small": 20, "full": 40},
    run=run,
    curve="accuracy",
    tuning="none: Adam with learning rate 0.001 for every arm, nothing chosen by accuracy",
)
