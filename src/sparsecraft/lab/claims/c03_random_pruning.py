"""Claim 03: with good layer densities and enough width, random pruning comes near dense.

Liu et al. (2022) prune networks at random before training. They find that the wider the network,
the smaller the gap to its dense twin, and that the layer densities (Erdos-Renyi-Kernel, ERK) carry
most of it. Here a network of three convolutions learns digits at four widths, with a tenth of its
weights; the masks come from `prune` and are held while it trains.

Every arm has the same tuning: four learning rates, the best on the validation part of the seed.
The rates of version 1 ended at 0.3, where the narrow sparse networks were best every time, so that
the gap there was too wide; version 2 states the same differences and goes on to 3.
Within a seed all arms share the division of the data and its order, and arms of one width share
the initial weights. The small dense network has as many weights as the sparse ones keep.

The paper also finds sparse networks better calibrated, better at telling other data, and more
robust. At width 32 the dense and the sparse networks are measured on that too (`beyond_accuracy`):
further metrics of the same networks, which decide nothing, so that the version stays as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from sparsecraft.core.catalog import Paper
from sparsecraft.core.mask import Mask
from sparsecraft.lab.claims import digits
from sparsecraft.lab.claims.beyond_accuracy import beyond_accuracy
from sparsecraft.lab.claims.cells import Cell, Cells
from sparsecraft.lab.claims.claim import Budget, Claim, Contrast, FullScale
from sparsecraft.lab.evidence.table import Row
from sparsecraft.lab.evidence.verdict import StatedDifference
from sparsecraft.model.pruning import prune

DENSITY = 0.1
WIDTHS = (4, 8, 16, 32)
VERSION = 2
# By version. The first is taken where validation accuracies tie.
RATES = {1: (0.1, 0.03, 0.3), 2: (0.1, 0.3, 1.0, 3.0)}
EPOCHS = 20
# Three standard errors of one accuracy near 0.95 on the 997 test images.
SMALLEST_EFFECT = 0.02
# A network "comes near dense" if it loses no more than this.
ALLOWED_GAP = 0.02
# Where the paper's claims beyond accuracy are looked at: the widest network of the small grid.
WIDTH_BEYOND = 32

SCHEMES: Mapping[str, Mapping[str, Any]] = {
    "erk": {"method": "random", "allocation": "erk"},
    "uniform": {"method": "random", "allocation": "uniform"},
    "er": {"method": "random", "allocation": "er"},
    "uniform+": {"method": "random", "allocation": "uniform+"},
    "snip ratios": {"method": "random_ratios"},
    "snip": {"method": "snip"},
    "snip shuffled": {"method": "snip", "shuffled": True},
}
FULL_DENSITIES = (0.05, 0.1, 0.2, 0.5)
FULL_WIDTHS = (4, 8, 16, 32, 64)
FULL_WIDTH_OF_SCHEMES = 16
FULL_BLOCKS = (2, 3)


def arm(scheme: str, width: int, density: float = DENSITY, blocks: int = 1) -> str:
    """Returns the name of an arm, with its width as the axis of the curve."""
    sparse = "" if scheme == "dense" else f" at {density:g}"
    depth = "" if blocks == 1 else f" {blocks} deep"
    return f"{scheme}{sparse}{depth}, width={width}"


def _gap(width: int, weight: float) -> dict[str, float]:
    return {arm("dense", width): weight, arm("erk", width): -weight}


STATED = (
    Contrast(
        stated=StatedDifference(
            text="the gap of random ERK pruning to dense is larger at widths 4 and 8 than at 32",
            unit="gap narrows in accuracy",
            direction="greater",
            smallest_effect=SMALLEST_EFFECT,
        ),
        metric="accuracy",
        terms={**_gap(4, 0.5), **_gap(8, 0.5), **_gap(32, -1.0)},
    ),
    Contrast(
        stated=StatedDifference(
            text=f"at width 32 the gap is below {ALLOWED_GAP:g}",
            unit="allowed gap left",
            direction="greater",
        ),
        metric="accuracy",
        terms=_gap(32, -1.0),
        constant=ALLOWED_GAP,
    ),
    Contrast(
        stated=StatedDifference(
            text="ERK densities beat uniform ones, over the four widths",
            unit="ERK over uniform in accuracy",
            direction="greater",
            smallest_effect=SMALLEST_EFFECT,
        ),
        metric="accuracy",
        terms={
            arm(scheme, width): sign / len(WIDTHS)
            for scheme, sign in (("erk", 1), ("uniform", -1))
            for width in WIDTHS
        },
    ),
)


def run(budget: Budget, seeds: Sequence[int], cells: Cells) -> list[Row]:
    """Returns the accuracy of every arm; see the module."""
    return cells.rows(measure, [cell for seed in seeds for cell in _grid(budget, seed)])


def _grid(budget: Budget, seed: int) -> Iterator[Cell]:
    if budget == "smoke":
        for scheme in ("dense", "erk", "uniform", "small dense"):
            yield _cell(scheme, 4, seed, epochs=2, rates=RATES[VERSION][:1])
        return
    for width in WIDTHS if budget == "small" else FULL_WIDTHS:
        for scheme in ("dense", "erk", "uniform", "small dense"):
            yield _cell(scheme, width, seed, beyond=width == WIDTH_BEYOND)
    if budget == "full":
        yield from _further(seed)


def _further(seed: int) -> Iterator[Cell]:
    """Yields what only the whole grid has: other densities, schemes and depths."""
    for density in FULL_DENSITIES:
        for width in FULL_WIDTHS:
            yield _cell("snip ratios", width, seed, density=density)
            if density != DENSITY:
                for scheme in ("erk", "uniform", "small dense"):
                    yield _cell(scheme, width, seed, density=density)
        for scheme in ("er", "uniform+", "snip", "snip shuffled"):
            yield _cell(scheme, FULL_WIDTH_OF_SCHEMES, seed, density=density)
    for blocks in FULL_BLOCKS:
        for width in FULL_WIDTHS:
            for scheme in ("dense", "erk", "uniform"):
                yield _cell(scheme, width, seed, blocks=blocks)


def _cell(
    scheme: str,
    width: int,
    seed: int,
    *,
    density: float = DENSITY,
    blocks: int = 1,
    epochs: int = EPOCHS,
    rates: Sequence[float] = RATES[VERSION],
    beyond: bool = False,
) -> Cell:
    settings = {
        "scheme": scheme,
        "width": width,
        "density": density,
        "blocks": blocks,
        "epochs": epochs,
        "rates": list(rates),
        **({"beyond": True} if beyond else {}),
    }
    return Cell(arm(scheme, width, density, blocks), seed, settings)


def measure(cell: Cell) -> dict[str, float]:
    """Returns the scores on the test part at the learning rate that is best on validation."""
    data = digits.load_digits(cell.seed)
    tried = [_train(cell, data, rate) for rate in cell.settings["rates"]]
    model, found = max(tried, key=lambda each: each[1]["validation accuracy"])
    return {**found, **(beyond_accuracy(model, data.test) if "beyond" in cell.settings else {})}


def _train(cell: Cell, data: digits.Digits, rate: float) -> tuple[nn.Module, dict[str, float]]:
    model, mask = _network(cell, data)
    digits.train(model, data.train, mask, seed=cell.seed, rate=rate, epochs=cell.settings["epochs"])
    if mask is not None:
        mask.verify(dict(model.named_parameters()))
    return model, {
        "accuracy": digits.accuracy(model, data.test),
        "validation accuracy": digits.accuracy(model, data.validation),
        "learning rate": rate,
        "weights": digits.prunable(model) if mask is None else mask.kept,
    }


def _network(cell: Cell, data: digits.Digits) -> tuple[nn.Module, Mask | None]:
    """Returns the network of a cell, pruned, and its mask."""
    scheme, width = cell.settings["scheme"], cell.settings["width"]
    widths = (width, 2 * width)
    if scheme == "small dense":
        widths = digits.equal_widths(*widths, cell.settings["density"])
    model = digits.convolutional(*widths, cell.seed, cell.settings["blocks"])
    if scheme in ("dense", "small dense"):
        return model, None
    options = dict(SCHEMES[scheme])
    shuffled = options.pop("shuffled", False)
    batch = {"input": data.train.images[:100], "labels": data.train.labels[:100]}
    # On a copy: the mask alone is wanted, and a shuffled one keeps weights that the method cut.
    report = prune(
        copy.deepcopy(model),
        sparsity=1 - cell.settings["density"],
        seed=cell.seed,
        calibration=[batch],
        **options,
    )
    return model, report.mask.shuffled(cell.seed) if shuffled else report.mask


CLAIM = Claim(
    number=3,
    title="Random pruning with good layer densities comes near dense where the network is wide",
    paper=Paper(
        "Liu et al.",
        2022,
        "2202.02643",
        number=3,
        title="The Unreasonable Effectiveness of Random Pruning",
    ),
    version=VERSION,
    stated=STATED,
    scale="0.06M parameters, digits",
    full_scale=FullScale(
        model="ResNet-20 to ResNet-110 for CIFAR; Wide ResNet-50-2 for ImageNet",
        data="CIFAR-10 and CIFAR-100 with crop and flip, a tenth held out; ImageNet-1k",
        recipe=(
            "Prune at random before training, train with the mask held, test the checkpoint that "
            "is best on validation. CIFAR: 160 epochs of SGD, learning rate divided by 10 at 1/2 "
            "and 3/4. ImageNet: 100 epochs, 5 of them warm-up, label smoothing."
        ),
        methods=(
            {"method": "random", "sparsity": 0.9, "allocation": "erk"},
            {"method": "random", "sparsity": 0.9, "allocation": "uniform"},
            {"method": "random", "sparsity": 0.5, "allocation": "erk+"},
            {"method": "random_ratios", "sparsity": 0.9},
        ),
        hyperparameters={
            "cifar": {
                "epochs": 160,
                "batch": 128,
                "rate": 0.1,
                "momentum": 0.9,
                "nesterov": True,
                "weight_decay": 5e-4,
            },
            "imagenet": {
                "epochs": 100,
                "warm_up_epochs": 5,
                "batch": 768,
                "rate": 0.4,
                "label_smoothing": 0.1,
            },
        },
    ),
    seeds={"smoke": 1, "small": 5, "full": 5},
    run=run,
    curve="accuracy",
    remark=(
        "Beyond accuracy, at width 32 the sparse network is not better than dense here in ECE, "
        "NLL, detection, corruptions or FGSM, which the paper finds on CIFAR and ImageNet."
    ),
    tuning=(
        f"learning rate from {list(RATES[VERSION])} for every arm, width and seed, "
        "by accuracy on 300 validation images"
    ),
)
