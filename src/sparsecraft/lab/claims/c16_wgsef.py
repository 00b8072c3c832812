"""Claim 16: the group envelope leaves exactly k neurons, with one strength for every k.

Refael, Arbel and Huleihel (2022) let the user say how many groups shall stay; with group lasso the
strength has to be searched until the count is right. Here a network 64-128-10 learns digits; a
group is a hidden neuron with its incoming row, its bias and its outgoing column. The count is taken
when the training ends, before the last cut; the accuracy after the cut to exactly k, without
refitting, in every arm.

Every arm has as many settings, of which the best on the validation part of the seed counts:
strengths for the penalties, learning rates where there is no penalty. In version 1 there were
four, and at k = 8 group lasso was best at the largest of its strengths every time, so that it was
tuned too little; version 2 states the same differences and has six. Within a seed all arms share
the division of the data and its order, and all large networks the initial weights. "magnitude"
trains a dense network and keeps the k neurons of largest norm, "random" any k of it; "small dense"
has k neurons from the start. Latencies beside dense are for information.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from sparsecraft.core.seeds import generator
from sparsecraft.kernels.selection import keep_largest
from sparsecraft.lab.claims import digits
from sparsecraft.lab.claims.cells import Cell, Cells
from sparsecraft.lab.claims.claim import Budget, Claim, Contrast, FullScale
from sparsecraft.lab.evidence.table import Row
from sparsecraft.lab.evidence.verdict import StatedDifference
from sparsecraft.lab.timing import interleaved_latency
from sparsecraft.methods.weights.group_lasso import GroupIHT, GroupLasso
from sparsecraft.methods.weights.group_prox import GroupMethod
from sparsecraft.methods.weights.wgsef import WGSEF
from sparsecraft.model.group_builders import find_groups, remove_zero_groups
from sparsecraft.model.groups import GroupFamily
from sparsecraft.model.sparsifier import Sparsifier

PIXELS, HIDDEN = 64, 128
COUNTS = (8, 16, 32)
EPOCHS = 40
RATE = 0.1
TIMED_BATCH = 256
VERSION = 2
# By version.
RATES = {1: (0.03, 0.1, 0.2, 0.4), 2: (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)}
# Of wgsef in units of half the squared norm, of group lasso in those of sqrt(size) times the norm.
ENVELOPE = {1: (0.05, 0.1, 0.2, 0.3), 2: (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)}
LASSO = {1: (0.015, 0.02, 0.03, 0.04), 2: (0.01, 0.015, 0.02, 0.03, 0.045, 0.07)}
STRENGTHS: Mapping[str, tuple[float, ...]] = {
    "wgsef": ENVELOPE[VERSION],
    "wgsef half-space": ENVELOPE[VERSION],
    "group lasso": LASSO[VERSION],
    "group lasso half-space": LASSO[VERSION],
}
# The one strength for every k, among those tried, at which the count is judged.
ONE_STRENGTH = 0.3
PLAIN = ("magnitude", "random", "small dense", "group iht")
# One point, 10 of 997 test images, as the card of the paper says.
SMALLEST_EFFECT = 0.01
# How far the count may be from k.
ALLOWED_MISS = 1.0


def arm(name: str, k: int) -> str:
    """Returns the name of an arm, with its number of neurons as the axis of the curve."""
    return f"{name}, k={k}"


STATED = (
    Contrast(
        stated=StatedDifference(
            text=(
                f"at strength {ONE_STRENGTH:g} the neurons left before the last cut are within "
                f"{ALLOWED_MISS:g} of k, on average over k = {', '.join(map(str, COUNTS))}"
            ),
            unit="of 1 neuron allowed unused",
            direction="greater",
        ),
        metric="missed neurons at one strength",
        terms={arm("wgsef", k): -1 / len(COUNTS) for k in COUNTS},
        constant=ALLOWED_MISS,
    ),
    Contrast(
        stated=StatedDifference(
            text="at exactly k neurons wgsef is more accurate than group lasso, over the three k",
            unit="wgsef over group lasso in accuracy",
            direction="greater",
            smallest_effect=SMALLEST_EFFECT,
        ),
        metric="accuracy",
        terms={
            arm(name, k): sign / len(COUNTS)
            for name, sign in (("wgsef", 1), ("group lasso", -1))
            for k in COUNTS
        },
    ),
)


def run(budget: Budget, seeds: Sequence[int], cells: Cells) -> list[Row]:
    """Returns accuracy, count and latency of every arm; see the module."""
    rows = cells.rows(measure, [cell for seed in seeds for cell in _grid(budget, seed)])
    if budget != "smoke":  # timings differ from run to run
        for k in COUNTS:  # one at a time, after all other work
            rows += cells.rows(measure_latency, [Cell(arm("compact", k), seeds[0], {"k": k})])
    return rows


def _grid(budget: Budget, seed: int) -> Iterator[Cell]:
    smoke = budget == "smoke"
    arms = ["wgsef", "group lasso", "magnitude", "random", "small dense"]
    if budget == "full":
        arms += ["group iht", "wgsef half-space", "group lasso half-space"]
    for name in arms:
        tried = list(RATES[VERSION] if name in PLAIN else STRENGTHS[name])
        for k in COUNTS[1:2] if smoke else COUNTS:
            settings = {
                "name": name,
                "k": k,
                "epochs": 2 if smoke else EPOCHS,
                "tried": tried[-2:-1] if smoke else tried,
            }
            yield Cell(arm(name, k), seed, settings)


def measure(cell: Cell) -> dict[str, float]:
    """Returns what the setting that is best on validation gives, and the count at one strength."""
    data = _flat(digits.load_digits(cell.seed))
    tried = [_train(cell, data, setting) for setting in cell.settings["tried"]]
    best = dict(max(tried, key=lambda found: found["validation accuracy"]))
    for each in tried:
        if cell.settings["name"] == "wgsef" and each["setting"] == ONE_STRENGTH:
            best["missed neurons at one strength"] = abs(each["neurons"] - cell.settings["k"])
            best["accuracy at one strength"] = each["accuracy"]
    return best


def measure_latency(cell: Cell) -> dict[str, float]:
    """Returns how fast a network cut to k neurons is beside dense, its zero neurons taken out."""
    data, k = _flat(digits.load_digits(cell.seed)), cell.settings["k"]
    dense, cut = perceptron(HIDDEN, cell.seed).eval(), perceptron(HIDDEN, cell.seed).eval()
    _cut(cut, k, cell.seed, at_random=False)
    smaller, _ = remove_zero_groups(cut, [_hidden(cut)], data.validation.images[:2])
    batch = {"input": data.validation.images[:TIMED_BATCH]}
    found = interleaved_latency(dense, smaller, {TIMED_BATCH: batch})[TIMED_BATCH]
    return {"ms": found.ms, "dense ms": found.dense_ms, "speed-up": found.ratio}


def _train(cell: Cell, data: digits.Digits, setting: float) -> dict[str, float]:
    name, k, epochs = (cell.settings[key] for key in ("name", "k", "epochs"))
    model = perceptron(k if name == "small dense" else HIDDEN, cell.seed)
    method = _method(name, k, setting)
    total = digits.steps(data.train, epochs)
    sparsifier = None if method is None else Sparsifier(model, method, total_steps=total)
    digits.train(
        model,
        data.train,
        seed=cell.seed,
        rate=setting if name in PLAIN else RATE,
        epochs=epochs,
        weight_decay=0.0,
        sparsifier=sparsifier,
    )
    neurons = _neurons(model)
    before = digits.accuracy(model, data.validation)
    if sparsifier is not None:
        sparsifier.finalize()
    elif name != "small dense":
        _cut(model, k, cell.seed, at_random=name == "random")
    return {
        "accuracy": digits.accuracy(model, data.test),
        "validation accuracy": digits.accuracy(model, data.validation),
        "validation accuracy before the cut": before,
        "setting": setting,
        "neurons": neurons,
        "neurons after the cut": _neurons(model),
    }


def _method(name: str, k: int, setting: float) -> GroupMethod | None:
    common: dict[str, Any] = {"k": k, "outgoing": True}
    if name.endswith("half-space"):
        common["stage"] = "half_space"
    if name.startswith("wgsef"):
        return WGSEF(strength=setting, **common)
    if name.startswith("group lasso"):
        return GroupLasso(strength=setting, **common)
    return GroupIHT(**common) if name == "group iht" else None


def perceptron(hidden: int, seed: int) -> nn.Sequential:
    """Returns a network with one hidden layer; each weight from its own stream.

    Args:
        hidden: Neurons of the hidden layer.
        seed: Seed of the initial weights.
    """
    model = nn.Sequential(nn.Linear(PIXELS, hidden), nn.ReLU(), nn.Linear(hidden, digits.CLASSES))
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter, generator=generator(seed, "initial", name))
        else:
            nn.init.zeros_(parameter)
    return model


def _hidden(model: nn.Module) -> GroupFamily:
    return find_groups(model, "neuron", outgoing=True)[0]


def _neurons(model: nn.Module) -> int:
    return int(_hidden(model).active(dict(model.named_parameters())).sum())


def _cut(model: nn.Module, k: int, seed: int, *, at_random: bool) -> None:
    """Keeps the k neurons of largest norm, or any k."""
    family, parameters = _hidden(model), dict(model.named_parameters())
    scores = family.norms(parameters)
    if at_random:
        scores = torch.rand(len(scores), generator=generator(seed, "random neurons", k))
    family.scale_(parameters, keep_largest([scores], k)[0].double())


def _flat(data: digits.Digits) -> digits.Digits:
    parts = (data.train, data.validation, data.test)
    return digits.Digits(*(digits.Part(part.images.flatten(1), part.labels) for part in parts))


CLAIM = Claim(
    number=16,
    title="The group envelope leaves exactly k neurons, with one strength for every k",
    paper=WGSEF.info.paper,
    version=VERSION,
    stated=STATED,
    scale="0.01M parameters, digits",
    full_scale=FullScale(
        model="VGG16, ResNet18, MobileNetV1; filters as groups",
        data="CIFAR-10 and Fashion-MNIST",
        recipe=(
            "Train from scratch with SGD, the prox after every step, half-space steps from half of "
            "the training on; keep k filters of each layer, take the others out, compare at equal "
            "accuracy with group lasso under HSPG."
        ),
        methods=(
            {"method": "wgsef", "sparsity": 0.7, "groups": "filter", "stage": "half_space"},
            {"method": "group_lasso", "sparsity": 0.7, "groups": "filter", "stage": "half_space"},
        ),
        hyperparameters={
            "epochs": 300,
            "batch": 128,
            "rate": 0.1,
            "momentum": 0.9,
            "strength": 1e-3,
            "switch": 0.5,
            "epsilon": 0.0,
        },
    ),
    seeds={"smoke": 1, "small": 5, "full": 5},
    run=run,
    curve="accuracy",
    remark=(
        "The count is hit exactly, for every k and seed, with one strength. The accuracy after "
        "the cut is that of a group lasso tuned for each k; a network that has k neurons from the "
        "start is behind at k = 8 (.893 against .926) and level at 16 and 32."
    ),
    tuning=(
        "six settings for every arm, k and seed, by accuracy on 300 validation images after the "
        f"cut: strengths {list(STRENGTHS['wgsef'])} of wgsef and {list(STRENGTHS['group lasso'])} "
        f"of group lasso, learning rates {list(RATES[VERSION])} of the others"
    ),
)
