"""Claim 18: pressing down only the channels that will go leaves the others free, and costs less.

Jiang et al. (2022) add an L1 term to the gradients of the BatchNorm scales of chosen channels,
where network slimming adds it to all of them. Both arms here start from the same trained network of
three convolutions (12, 24, 24 channels) and remove the same half of its channels: those with the
smallest scales after network slimming at the same strength, so that the choice is slimming's own.
They are measured before the removal, right after it and after training on.

What a removed channel still gave, act(shift), is dropped as in the official code. "absorbed" folds
it into what follows ("absorbed mean" over all positions, borders included), which shows how much of
the fall right after the removal is that constant and not the scale.

The strengths are far above the paper's 5e-4, for there are 200 steps, not half a million. Each arm
has the same four; where arms are compared at their best, it is chosen on the validation part.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import nn

from sparsecraft.core.mask import Mask
from sparsecraft.lab.claims import digits
from sparsecraft.lab.claims.cells import Cell, Cells
from sparsecraft.lab.claims.channel_trainings import (
    Phases,
    baseline,
    cost_figures,
    data_of,
    latency_figures,
    scale_figures,
    slimmed,
    train,
)
from sparsecraft.lab.claims.claim import Budget, Claim, Contrast, FullScale
from sparsecraft.lab.evidence.table import Row
from sparsecraft.lab.evidence.verdict import StatedDifference
from sparsecraft.methods.weights.mask_sparsity import MaskSparsity
from sparsecraft.model.channel_choice import Score, channel_mask
from sparsecraft.model.channels import from_scratch, prune_channels

VERSION = 1
SPARSITY = 0.5
STRENGTHS = (0.03, 0.06, 0.1, 0.3)
PAIR = 0.1
"""The strength at which the two arms are compared before the removal."""
SMALLEST_EFFECT = 0.02
SMALLEST_SCALE = 0.1
ALLOWED_WORSE = 0.01
ALLOWED_LOSS = 0.02

USUAL = Phases()
SMOKE = Phases(1, 1, 1)
RESNET = Phases(3, 4, 2)


def arm(series: str, strength: float | None = None) -> str:
    """Returns the name of an arm, with its strength as the axis of the curve."""
    return series if strength is None else f"{series}, strength={strength:g}"


def best(series: str) -> str:
    """Returns the name of a series at the strength that is best on validation."""
    return f"{series} at its best"


STATED = (
    Contrast(
        stated=StatedDifference(
            text=f"at strength {PAIR:g}, masked L1 is more accurate than global L1 before pruning",
            unit="accuracy",
            direction="greater",
            smallest_effect=SMALLEST_EFFECT,
        ),
        metric="before pruning",
        terms={arm("masked L1", PAIR): 1, arm("global L1", PAIR): -1},
    ),
    Contrast(
        stated=StatedDifference(
            text=f"at strength {PAIR:g}, masked L1 leaves larger scales to the channels that stay",
            unit="mean scale",
            direction="greater",
            smallest_effect=SMALLEST_SCALE,
        ),
        metric="kept scale",
        terms={arm("masked L1", PAIR): 1, arm("global L1", PAIR): -1},
    ),
    Contrast(
        stated=StatedDifference(
            text=f"fine-tuned, masked L1 is not worse by {ALLOWED_WORSE:g}, each at its best",
            unit="allowance left against global L1",
            direction="greater",
        ),
        metric="accuracy",
        terms={best("masked L1"): 1, best("global L1"): -1},
        constant=ALLOWED_WORSE,
    ),
    Contrast(
        stated=StatedDifference(
            text=f"fine-tuned, masked L1 at its best loses less than {ALLOWED_LOSS:g} to dense",
            unit="allowance left against dense",
            direction="greater",
        ),
        metric="accuracy",
        terms={best("masked L1"): 1, "dense": -1},
        constant=ALLOWED_LOSS,
    ),
)


def run(budget: Budget, seeds: Sequence[int], cells: Cells) -> list[Row]:
    """Returns the figures of every arm, and of each series at its best; see the module."""
    rows = cells.rows(measure, [cell for seed in seeds for cell in _grid(budget, seed)])
    return rows + list(_at_their_best(rows))


def _at_their_best(rows: Sequence[Row]) -> Iterator[Row]:
    """Yields the test accuracy of each series and seed at its best strength on validation."""
    found: dict[tuple[str, int], dict[str, dict[str, float]]] = {}
    for row in rows:
        series, comma, strength = row.arm.partition(", strength=")
        if comma:
            of_series = found.setdefault((series, row.seed), {})
            of_series.setdefault(strength, {})[row.metric] = row.value
    for (series, seed), by_strength in found.items():
        chosen = max(by_strength, key=lambda key: by_strength[key]["validation accuracy"])
        yield Row(best(series), seed, "accuracy", by_strength[chosen]["accuracy"])
        yield Row(best(series), seed, "strength", float(chosen))


def _grid(budget: Budget, seed: int) -> Iterator[Cell]:
    if budget == "smoke":
        yield _cell("dense", None, seed, phases=SMOKE)
        for series in ("global L1", "masked L1"):
            yield _cell(series, PAIR, seed, phases=SMOKE)
        return
    yield _cell("dense", None, seed)
    yield _cell("from scratch", None, seed)
    yield _cell("latency of compact", None, seed)
    for strength in STRENGTHS:
        for series in ("global L1", "masked L1", "random channels"):
            yield _cell(series, strength, seed)
    if budget == "full":
        yield from _further(seed)


def _further(seed: int) -> Iterator[Cell]:
    """Yields what only the whole grid has: more channels gone, other choices, another network."""
    for strength in STRENGTHS:
        for series in ("global L1", "masked L1", "random channels"):
            yield _cell(series, strength, seed, label=f"{series} at 0.75", sparsity=0.75)
        further: tuple[dict[str, Any], ...] = (
            {"score": "filter norm"},
            {"rule": "ratio"},
            {"penalty": "l2"},
            {"penalty": "smooth_l1"},
            {"start": "slimmed"},
        )
        for options in further:
            label = f"masked L1 {' '.join(options.values())}"
            yield _cell("masked L1", strength, seed, label=label, **options)
        yield _cell("global L1", strength, seed, label="global L1 small_l2", penalty="small_l2")
    for series in ("dense", "global L1", "masked L1"):
        at = None if series == "dense" else PAIR
        label = f"{series} in a ResNet"
        yield _cell(series, at, seed, label=label, network="resnet", phases=RESNET)


def _cell(
    series: str,
    strength: float | None,
    seed: int,
    *,
    label: str = "",
    sparsity: float = SPARSITY,
    phases: Phases = USUAL,
    network: str = "digits",
    **options: str,
) -> Cell:
    settings = {
        "series": series,
        "strength": strength,
        "sparsity": sparsity,
        "phases": asdict(phases),
        "network": network,
        **options,
    }
    return Cell(arm(label or series, strength), seed, settings)


def measure(cell: Cell) -> dict[str, float]:
    """Returns the accuracies of a cell before and after the removal, its scales and its cost."""
    settings = cell.settings
    data = data_of(settings["network"], cell.seed)
    if settings["series"] == "dense":
        return _dense(cell, data)
    strength = PAIR if settings["strength"] is None else settings["strength"]
    model, mask = _pressed(cell, strength, data)
    example = data.train.images[: digits.BATCH]
    removed, _ = prune_channels(model, mask, example_input=example)
    if settings["series"] == "latency of compact":
        return latency_figures(model, removed, data)
    if settings["series"] == "from scratch":
        return _scratch(cell, removed, data)
    found = {"before pruning": digits.accuracy(model, data.test), **scale_figures(model, mask)}
    found["after pruning"] = digits.accuracy(removed, data.test)
    absorbed, _ = prune_channels(model, mask, absorb_bias=True, example_input=example)
    found["after pruning, absorbed"] = digits.accuracy(absorbed, data.test)
    mean, _ = prune_channels(model, mask, absorb_bias="mean", example_input=example)
    found["after pruning, absorbed mean"] = digits.accuracy(mean, data.test)
    found |= cost_figures(model, removed, example)
    train(mean, settings["network"], cell.seed, settings["phases"]["fine"])
    found["accuracy, absorbed mean"] = digits.accuracy(mean, data.test)
    return {**found, **_finished(cell, removed, data)}


def _pressed(cell: Cell, strength: float, data: digits.Digits) -> tuple[nn.Module, Mask]:
    """Returns the network after its sparsity training, and the channels to keep."""
    settings, seed = cell.settings, cell.seed
    network, phases = settings["network"], Phases(**settings["phases"])
    penalty = settings.get("penalty", "l1")
    random = settings["series"] == "random channels"
    score: Score = "random" if random else settings.get("score", "scale")
    begun = baseline(network, seed, phases.baseline)
    pressed = begun
    if score == "scale":
        both = (phases.baseline, phases.sparse)
        pressed = slimmed(network, seed, both, strength, penalty)
    mask = channel_mask(
        pressed,
        settings.get("rule", "quantile"),
        sparsity=settings["sparsity"],
        score=score,
        example_input=data.train.images[: digits.BATCH],
        seed=seed,
    )
    if settings["series"] not in ("masked L1", "random channels"):
        return pressed, mask
    model = copy.deepcopy(pressed if settings.get("start") == "slimmed" else begun)
    method = MaskSparsity(strength=strength, penalty=penalty, masks=mask)  # type: ignore[arg-type]
    return train(model, network, seed, phases.sparse, method), mask


def _finished(cell: Cell, model: nn.Module, data: digits.Digits) -> dict[str, float]:
    """Returns the accuracies after fine-tuning, in place."""
    train(model, cell.settings["network"], cell.seed, cell.settings["phases"]["fine"])
    return {
        "accuracy": digits.accuracy(model, data.test),
        "validation accuracy": digits.accuracy(model, data.validation),
    }


def _dense(cell: Cell, data: digits.Digits) -> dict[str, float]:
    """Returns the accuracies of the network that goes through the same trainings whole."""
    phases, network = Phases(**cell.settings["phases"]), cell.settings["network"]
    model = copy.deepcopy(baseline(network, cell.seed, phases.baseline))
    found = {"baseline": digits.accuracy(model, data.test)}
    train(model, network, cell.seed, phases.sparse)
    found["before pruning"] = digits.accuracy(model, data.test)
    return {**found, **_finished(cell, model, data)}


def _scratch(cell: Cell, removed: nn.Module, data: digits.Digits) -> dict[str, float]:
    """Returns the accuracies of the pruned shape, trained from nothing for as long in all."""
    phases = cell.settings["phases"]
    fresh = from_scratch(removed, cell.seed)
    train(fresh, cell.settings["network"], cell.seed, sum(phases.values()))
    return {
        "accuracy": digits.accuracy(fresh, data.test),
        "validation accuracy": digits.accuracy(fresh, data.validation),
    }


_RECIPE: Mapping[str, Any] = {"batch": 256, "rate": 0.1, "momentum": 0.9, "nesterov": True}

CLAIM = Claim(
    number=18,
    title="Pressing down only the channels that will be removed costs less than pressing all",
    paper=MaskSparsity.info.paper,
    version=VERSION,
    stated=STATED,
    scale="0.008M parameters, digits",
    full_scale=FullScale(
        model="ResNet-50 for ImageNet; ResNet-56 and ResNet-110 for CIFAR-10",
        data="ImageNet-1k; CIFAR-10",
        recipe=(
            "Train the baseline. Train it again with network slimming, and take as the mask the "
            "scales above 0.01. Train the baseline a third time with MaskSparsity under that mask, "
            "remove the channels, fine-tune without a term. On ImageNet 100 epochs each, rate "
            "divided by 10 at 30, 60 and 90, the last scale of each block starting at zero; "
            "fine-tuning 40 epochs at 5e-4, divided at 10, 20 and 30."
        ),
        methods=(
            {
                "method": "network_slimming",
                "rule": "threshold",
                "threshold": 0.01,
                "strength": 5e-4,
            },
            {"method": "mask_sparsity", "rule": "threshold", "threshold": 0.01, "strength": 5e-4},
        ),
        hyperparameters={
            "imagenet": {**_RECIPE, "epochs": 100, "weight_decay": 1e-4, "strength": 5e-4},
            "fine_tuning": {"epochs": 40, "rate": 5e-4},
            "a third of the FLOPs": {"strength": 2e-4},
        },
    ),
    seeds={"smoke": 1, "small": 5, "full": 6},
    run=run,
    curve="accuracy",
    remark=(
        "Random channels, pressed down in the same way, end as accurate as those that slimming "
        "chose: at this scale what matters is that only the channels that go are pressed, not "
        "which ones they are. Right after the removal most of the fall is the dropped constant of "
        "the removed channels: with it absorbed, accuracy stays."
    ),
    tuning=(
        f"strength from {list(STRENGTHS)} for every arm, by accuracy on 300 validation images "
        "after fine-tuning; the learning rate of all phases is one for all arms"
    ),
)
