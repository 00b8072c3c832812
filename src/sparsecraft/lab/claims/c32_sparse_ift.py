"""Claim 32: a larger, sparse network beats the dense one that costs the same.

Thangarasa et al. (2023) widen a network by sqrt(1 / (1 - s)), make it sparse so that its FLOPs
are those of the dense one, and train it by RigL with the dense network's hyperparameters: it ends
better, the more so the sparser, and better than under a static mask. Here a narrow convolutional
network tells 18 pictures by patches of 16 by 16 pixels. No pixel of a test tile is ever trained
on, and twice the width is better by three points (at four times the FLOPs), so that there is
something for size to bring.

All arms share the patches, their order and the epochs, and each chooses the better of the same two
learning rates on validation patches. The paper gives the sparse networks the dense one's rate; in
pilots the narrow dense network was best at the higher rate and the wide sparse ones at the lower,
so that one rate for all would have decided the comparison. The sparsity of every transformed
network is solved from profiled FLOPs; a run whose masked network costs over 1 % more or less than
dense is refused. What a training step of RigL costs, dense gradients of the larger network
included, stands beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecraft.core import catalog
from sparsecraft.core.allocation import Uniform
from sparsecraft.core.errors import BudgetError
from sparsecraft.core.iso_flop import rigl_step_flops
from sparsecraft.core.kinds import InTraining
from sparsecraft.core.mask_graph import spectral_gap
from sparsecraft.core.seeds import generator
from sparsecraft.lab.claims import digits
from sparsecraft.lab.claims.cells import Cell, Cells
from sparsecraft.lab.claims.claim import Budget, Claim, Contrast, FullScale
from sparsecraft.lab.evidence.table import Row
from sparsecraft.lab.evidence.verdict import StatedDifference
from sparsecraft.lab.tasks.patches import patches
from sparsecraft.lab.tasks.vision import Part
from sparsecraft.methods.weights.sparse_ift import SparseIFT, sparse_ift
from sparsecraft.methods.weights.sparse_ift.recipe import PAPER
from sparsecraft.methods.weights.sparse_ift.scope import find_scope
from sparsecraft.methods.weights.static import static_twin
from sparsecraft.model.flops import profile_flops
from sparsecraft.model.sparsifier import Sparsifier
from sparsecraft.model.training_report import TrainingReport

WIDTHS = (4, 8, 16)
SPARSITIES = (0.5, 0.75, 0.9)
SPARSITY_OF_FAMILIES = 0.75
TRAINING_PATCHES = 4000
BATCH = 64
EPOCHS = 8
RATES = (0.1, 0.3)
SMALLEST_EFFECT = 0.01
# Of the difference of two gains, half that of a gain.
SMALLEST_RISE = 0.005
MOST_DIFFERENCE = 0.01
FAMILIES = ("wide", "parallel", "factorized", "doped")


def arm(name: str, sparsity: float) -> str:
    """Returns the name of an arm, with its sparsity as the axis of the curve."""
    return f"{name}, sparsity={sparsity:g}"


def _over(first: str, second: str) -> dict[str, float]:
    """Returns the terms of a mean difference over the three sparsities."""
    terms: dict[str, float] = {}
    for sparsity in SPARSITIES:
        for name, sign in ((first, 1), (second, -1)):
            key = name if name == "dense" else arm(name, sparsity)
            terms[key] = terms.get(key, 0.0) + sign / len(SPARSITIES)
    return terms


STATED = (
    Contrast(
        stated=StatedDifference(
            text="at equal FLOPs Sparse-Wide with RigL beats dense, over the three sparsities",
            unit="Sparse-Wide over dense in accuracy",
            direction="greater",
            smallest_effect=SMALLEST_EFFECT,
        ),
        metric="accuracy",
        terms=_over("wide rigl", "dense"),
    ),
    Contrast(
        stated=StatedDifference(
            text="Sparse-Wide with RigL is better at sparsity 0.9 than at 0.5",
            unit="0.9 over 0.5 in accuracy",
            direction="greater",
            smallest_effect=SMALLEST_RISE,
        ),
        metric="accuracy",
        terms={arm("wide rigl", 0.9): 1.0, arm("wide rigl", 0.5): -1.0},
    ),
    Contrast(
        stated=StatedDifference(
            text="RigL beats the static mask that it starts from, over the three sparsities",
            unit="RigL over static in accuracy",
            direction="greater",
        ),
        metric="accuracy",
        terms=_over("wide rigl", "wide static"),
    ),
)


def run(budget: Budget, seeds: Sequence[int], cells: Cells) -> list[Row]:
    """Returns accuracy and FLOPs of every arm; see the module."""
    return cells.rows(measure, [cell for seed in seeds for cell in _grid(budget, seed)])


def _grid(budget: Budget, seed: int) -> Iterator[Cell]:
    if budget == "smoke":
        yield _dense(seed, epochs=1)
        for family in FAMILIES:
            yield _transformed(family, "rigl", SPARSITY_OF_FAMILIES, seed, epochs=1)
        return
    yield _dense(seed)
    everything = budget == "full"
    for sparsity in SPARSITIES:
        for training in ("rigl", "static"):
            yield _transformed("wide", training, sparsity, seed)
        if everything or sparsity == max(SPARSITIES):
            yield _transformed("wide", "set", sparsity, seed)
        if everything or sparsity == SPARSITY_OF_FAMILIES:
            yield _transformed("wide", "dense", sparsity, seed)
            for family in FAMILIES[1:]:
                yield _transformed(family, "rigl", sparsity, seed)
        if everything or sparsity > min(SPARSITIES):
            name = arm("naive rigl", sparsity)
            yield _cell(name, seed, family="none", training="rigl", s=sparsity)
    if everything:
        for family in FAMILIES[1:]:
            for sparsity in SPARSITIES:
                for training in ("set", "static"):
                    yield _transformed(family, training, sparsity, seed)


def _dense(seed: int, epochs: int = EPOCHS) -> Cell:
    return _cell("dense", seed, family="none", training="dense", s=0.0, epochs=epochs)


def _transformed(
    family: str, training: str, sparsity: float, seed: int, epochs: int = EPOCHS
) -> Cell:
    name = arm(f"{family} {training}", sparsity)
    return _cell(name, seed, family=family, training=training, s=sparsity, epochs=epochs)


def _cell(
    name: str, seed: int, *, family: str, training: str, s: float, epochs: int = EPOCHS
) -> Cell:
    settings = {
        "family": family,
        "training": training,
        "sparsity": s,
        "epochs": epochs,
        "rates": list(RATES if epochs == EPOCHS else RATES[:1]),
    }
    return Cell(name, seed, settings)


def measure(cell: Cell) -> dict[str, float]:
    """Returns the figures of an arm at the learning rate that is better on validation patches."""
    tried = [_train(cell, rate) for rate in cell.settings["rates"]]
    return max(tried, key=lambda found: found["validation accuracy"])


def _train(cell: Cell, rate: float) -> dict[str, float]:
    """Returns the accuracies of an arm, and what its network costs beside the dense one."""
    data, epochs = part("training", cell.seed), cell.settings["epochs"]
    example = data.images[:1]
    dense = network(*WIDTHS, seed=cell.seed)
    budget = profile_flops(dense, example).total
    model, sparsifier = _arm(cell, dense, example, digits.steps(data, epochs, BATCH))
    digits.train(
        model,
        data,
        seed=cell.seed,
        rate=rate,
        epochs=epochs,
        batch=BATCH,
        sparsifier=sparsifier,
    )
    outcome = None if sparsifier is None else sparsifier.finalize()
    costs = _costs(model, outcome, example, budget)
    if cell.settings["family"] != "none" and outcome is not None:
        _check_equal(cell.arm, costs["FLOPs over dense"])
    return {
        "accuracy": digits.accuracy(model, part("test", cell.seed)),
        "validation accuracy": digits.accuracy(model, part("validation", cell.seed)),
        "learning rate": rate,
        **costs,
        **_masks(outcome),
    }


def _arm(
    cell: Cell, dense: nn.Module, example: Tensor, steps: int
) -> tuple[nn.Module, Sparsifier | None]:
    """Returns the network that an arm trains, and what makes it sparse."""
    family, training = cell.settings["family"], cell.settings["training"]
    model, sparsity = dense, cell.settings["sparsity"]
    if family == "none":
        targets = [target.parameter for target in find_scope(dense, example).targets]
    else:
        model, report = sparse_ift(
            dense, family, sparsity=sparsity, example_input=example, seed=cell.seed
        )
        sparsity, targets = report.sparsity, list(report.targets)
    if training == "dense":
        return model, None
    method = sparse_training(training, sparsity)
    return model, Sparsifier(model, method, targets=targets, total_steps=steps, seed=cell.seed)


def _check_equal(name: str, flops: float) -> None:
    if abs(flops - 1) > MOST_DIFFERENCE:
        raise BudgetError(
            f"{name}: its network has {flops:.4f} times the FLOPs of the dense one; more than "
            f"{MOST_DIFFERENCE:.0%} apart, the comparison would not be at equal FLOPs"
        )


def sparse_training(name: str, sparsity: float) -> InTraining:
    """Returns the method of a training, with equal densities in all layers."""
    dynamic: Any = catalog.build("rigl" if name == "static" else name)
    dynamic = replace(dynamic, sparsity=sparsity, allocation=Uniform())
    return static_twin(dynamic) if name == "static" else dynamic


def _costs(
    model: nn.Module, outcome: TrainingReport | None, example: Tensor, budget: int
) -> dict[str, float]:
    profile = profile_flops(model, example)
    flops = profile.effective({} if outcome is None else outcome.mask.densities)
    costs = {"FLOPs over dense": flops / budget, "kernel FLOPs over dense": profile.total / budget}
    updates = 0 if outcome is None else sum(each.dense_gradient for each in outcome.history)
    if outcome is not None and updates:
        every = outcome.steps[1] // updates
        costs["training FLOPs over dense"] = rigl_step_flops(flops, profile.total, every) / (
            3 * budget
        )
    return costs


def _masks(outcome: TrainingReport | None) -> dict[str, float]:
    """Returns what the training explored, and how well the final masks connect."""
    if outcome is None:
        return {}
    gaps = [spectral_gap(mask) for mask in outcome.mask.values()]
    found = {"spectral gap": sum(gaps) / len(gaps), "sparsity": outcome.sparsity}
    if outcome.always_active:
        sizes = {target.name: target.numel for target in outcome.targets}
        always = sum(share * sizes[name] for name, share in outcome.always_active.items())
        found["always active"] = always / sum(sizes.values())
        found["ever active"] = outcome.itop
    return found


def part(name: Part, seed: int) -> digits.Part:
    """Returns patches at half resolution; those of the training are drawn anew for each seed."""
    images = patches()[name]
    if name == "training":
        order = torch.randperm(len(images), generator=generator(seed, "patches"))
        images = images.take(order[:TRAINING_PATCHES])
    return digits.Part(F.avg_pool2d(images.pixels, 2), images.labels)


def network(first: int, second: int, third: int, seed: int) -> nn.Sequential:
    """Returns six 3x3 convolutions in three stages, each halving the resolution, and a classifier.

    Args:
        first: Channels of the first stage.
        second: Channels of the second.
        third: Channels of the third.
        seed: Of the initial weights, Kaiming normal by the outputs, as `sparse_ift` draws them.
    """
    layers: list[nn.Module] = []
    before = 1
    for channels in (first, second, third):
        for stride in (2, 1):
            layers += [
                nn.Conv2d(before, channels, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
            ]
            before = channels
    classes = int(patches()["training"].labels.max()) + 1
    head = nn.Linear(before, classes)
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 2:
            draw = generator(seed, "initial", name)
            nn.init.kaiming_normal_(parameter, mode="fan_out", generator=draw)
    nn.init.normal_(head.weight, std=before**-0.5, generator=generator(seed, "initial", "head"))
    nn.init.zeros_(head.bias)
    return model


_METHODS: tuple[Mapping[str, Any], ...] = tuple(
    catalog.describe(SparseIFT(family=family, sparsity=sparsity))  # type: ignore[arg-type]
    for family in FAMILIES
    for sparsity in SPARSITIES
)

CLAIM = Claim(
    number=32,
    title="A wider, sparse network beats the dense one of equal FLOPs",
    paper=PAPER,
    version=1,
    stated=STATED,
    scale="0.006M dense parameters, patches of pictures",
    full_scale=FullScale(
        model="ResNet-18, 34 and 50; GPT-3 Small and Medium",
        data="CIFAR-100 and ImageNet-1k with crop and flip; the Pile, WikiText-103",
        recipe=(
            "Transform, train from scratch with the dense model's hyperparameters and RigL, test "
            "the last checkpoint. CIFAR-100: 200 epochs of SGD in steps. ImageNet: 90 epochs of "
            "SGD, label smoothing 0.1, cosine."
        ),
        methods=_METHODS,
        hyperparameters={
            "cifar100": {
                "epochs": 200,
                "batch": 128,
                "rate": 0.1,
                "momentum": 0.9,
                "weight_decay": 5e-4,
            },
            "imagenet": {
                "epochs": 90,
                "batch": 256,
                "rate": 0.256,
                "momentum": 0.875,
                "weight_decay": 3.05e-5,
                "label_smoothing": 0.1,
            },
            "rigl": {"drop": 0.3, "every": 100, "end_at": 0.75, "allocation": "uniform"},
        },
    ),
    seeds={"smoke": 1, "small": 5, "full": 10},
    run=run,
    curve="accuracy",
    remark=(
        "The means rise with sparsity as the paper says (.502 dense, .513, .533, .544), at equal "
        "profiled FLOPs; five seeds with a spread of .025 cannot place the gain above .01. Of the "
        "other families only Sparse-Wide is above dense here."
    ),
    tuning=(
        f"learning rate from {list(RATES)} for every arm and seed, by accuracy on the validation "
        "patches"
    ),
)
