"""Claim 17: the average of retrained copies of one pruned network beats them, as sparse as they.

Zimmer et al. (2023) prune a network, retrain it several times side by side, average the copies and
go on pruning from the average. The soup is more accurate than its candidates on average, exactly as
sparse, and better than iterative magnitude pruning (IMP) that spends the same compute on one copy.
Here a network of three convolutions loses nine tenths of its weights in three phases of three
copies that differ in their seed.

On a task this small a learning rate that falls to zero can leave copies that hardly differ, so that
an average has little to do. The first difference is stated for a constant rate, in one and
the same run, and that run's rate is the one that is best *for the mean candidate*: the choice
favours the rival. The comparison with IMP at equal compute is open to both schedules, constant and
cosine, and every arm of it takes its own best.

Every arm has the same tuning, chosen on the validation part of the seed; all arms of a seed start
from the same dense network, and statistics of batch normalisation are gathered anew for all. Two
further arms average three *independent* IMP runs, whose masks differ, and prune that average back.
Calibration, detection of other data and accuracy under disturbance are measured for the arms of
the last phase and decide nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sparsecraft.core.catalog import Paper
from sparsecraft.lab.claims.beyond_accuracy import beyond_accuracy
from sparsecraft.lab.claims.cells import Cell, Cells
from sparsecraft.lab.claims.claim import Budget, Claim, Contrast, FullScale
from sparsecraft.lab.claims.soup_runs import (
    MODELS,
    SPARSITY,
    Bench,
    arm,
    averages,
    soups,
    spread,
)
from sparsecraft.lab.evidence.table import Row
from sparsecraft.lab.evidence.verdict import StatedDifference

# Of each phase; and of the dense network.
EPOCHS = 6
PRETRAINING = 25
# (learning rate, whether it is constant); the first is taken where validation accuracies tie.
TUNING = ((0.1, True), (0.3, True), (0.1, False), (0.3, False))
# Half a point, 5 of 997 test images; the paper tells of one to two points.
SMALLEST_EFFECT = 0.005
FULL_SPARSITIES = (0.9, 0.95)
FULL_MODELS = (3, 5, 10)


STATED = (
    Contrast(
        stated=StatedDifference(
            text="at a constant rate the soup beats the mean of its own candidates",
            unit="soup over mean candidate in accuracy",
            direction="greater",
            smallest_effect=SMALLEST_EFFECT,
        ),
        metric="accuracy",
        terms={arm("soup"): 1.0, arm("mean candidate"): -1.0},
    ),
    Contrast(
        stated=StatedDifference(
            text="the soup keeps exactly as many weights as every candidate",
            unit="of 1 weight allowed unused",
            direction="greater",
        ),
        metric="largest difference in weights",
        terms={arm("soup"): -1.0},
        constant=1.0,
    ),
    Contrast(
        stated=StatedDifference(
            text="the soup beats iterative magnitude pruning of the same compute, both tuned",
            unit=f"tuned soup over IMP {MODELS}x in accuracy",
            direction="greater",
            smallest_effect=SMALLEST_EFFECT,
        ),
        metric="accuracy",
        terms={arm("tuned soup"): 1.0, arm(f"IMP {MODELS}x"): -1.0},
    ),
)


def run(budget: Budget, seeds: Sequence[int], cells: Cells) -> list[Row]:
    """Returns the scores of every arm; see the module."""
    return spread(cells.rows(measure, [cell for seed in seeds for cell in _grid(budget, seed)]))


def _grid(budget: Budget, seed: int) -> Iterator[Cell]:
    smoke = budget == "smoke"
    lengths = {"epochs": 1 if smoke else EPOCHS, "pretraining": 2 if smoke else PRETRAINING}
    common = {**lengths, "tuning": [list(each) for each in (TUNING[:1] if smoke else TUNING)]}
    for sparsity in FULL_SPARSITIES if budget == "full" else (SPARSITY,):
        for models in FULL_MODELS if budget == "full" else (MODELS,):
            size = {"sparsity": sparsity, "models": models}
            for kind in ("soup", "IMP x", "IMP average"):
                label = kind.replace("x", f"{models}x")
                name = arm(label, sparsity=sparsity, models=models)
                yield Cell(f"run of {name}", seed, {"kind": kind, **size, **common})
        for kind in ("IMP", "random"):
            name = arm(kind, sparsity=sparsity)
            settings = {"kind": kind, "sparsity": sparsity, "models": MODELS, **common}
            yield Cell(f"run of {name}", seed, settings)
    yield Cell("dense", seed, {"kind": "dense", **lengths})


def measure(cell: Cell) -> dict[str, float]:
    """Returns what one recipe gives for one seed, as "arm: metric"."""
    bench = Bench(cell)
    kind = cell.settings["kind"]
    if kind == "dense":
        dense = bench.dense()
        return {**bench.scores(dense), **beyond_accuracy(dense, bench.data.test)}
    if kind == "soup":
        return soups(bench)
    if kind == "IMP average":
        return averages(bench)
    models = cell.settings["models"] if kind == "IMP x" else 1
    label = f"IMP {models}x" if kind == "IMP x" else kind
    runs = [bench.single(label, tuning, models) for tuning in cell.settings["tuning"]]
    return max(runs, key=lambda found: found[f"{bench.arm(label)}: validation accuracy"])


CLAIM = Claim(
    number=17,
    title="The average of retrained copies of one pruned network beats them and stays as sparse",
    paper=Paper(
        "Zimmer, Spiegel, Pokutta",
        2023,
        "2306.16788",
        number=17,
        title="Sparse Model Soups: A Recipe for Improved Pruning via Model Averaging",
    ),
    version=1,
    stated=STATED,
    scale="0.014M parameters, digits",
    full_scale=FullScale(
        model="ResNet-18, WideResNet-20 and ResNet-50",
        data="CIFAR-10, CIFAR-100 and ImageNet-1k; CIFAR-C and ImageNet-C at severity 3",
        recipe=(
            "Pretrain by momentum SGD, rate linear from 0.1 to 0. In each of three phases prune "
            "the smallest weights of all layers, retrain the copies by the schedule LLR, average "
            "them, gather the statistics of batch normalisation on training data. Beside it IMP "
            "of the same number of epochs. Epochs of CIFAR are not certain: 10 or more a phase."
        ),
        methods=(
            {"method": "sparse_model_soup", "sparsity": 0.98, "phases": 3, "models": 3},
            {"method": "sparse_model_soup", "sparsity": 0.98, "phases": 3, "models": 5},
            {"method": "sparse_model_soup", "sparsity": 0.9, "phases": 3, "models": 3},
            {
                "method": "sparse_model_soup",
                "sparsity": 0.9,
                "models": 3,
                "vary": "weight_decay",
                "values": (1e-4, 2e-4, 5e-4),
            },
            {
                "method": "sparse_model_soup",
                "sparsity": 0.9,
                "models": 1,
                "vary": "length",
                "values": (30,),
            },
        ),
        hyperparameters={
            "momentum": 0.9,
            "nesterov": True,
            "weight_decay": 1e-4,
            "rate": 0.1,
            "retraining_epochs": {"cifar": 10, "imagenet": 10},
            "recalibration_fraction": 0.2,
        },
    ),
    seeds={"smoke": 1, "small": 8, "full": 10},
    run=run,
    curve="accuracy",
    remark=(
        "Souping helps by half a point at a constant rate, about the smallest effect of interest. "
        "Against one copy that trains three times as long the tuned soup shows no gain here; its "
        "candidates nearly coincide on a task this small."
    ),
    tuning=(
        "learning rate 0.1 or 0.3, constant or falling by a cosine, for every arm and seed by "
        "accuracy on 300 validation images; the averages of independent runs take the first"
    ),
)
