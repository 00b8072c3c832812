"""Claim 9: at equal sparsity, codes with an L0-like penalty rebuild images better than L1's.

Rentzeperis et al. (2023) learn dictionaries of natural images with four thresholds (soft, hard,
half, CEL0) and compare the error at equal numbers of active units, and the dictionaries needed for
an equal error. Here the patches are 8 by 8 pixels of scikit-image's pictures, whitened as in the
paper; one picture is held out for the test. Every method learns a dictionary for each strength of a
sweep, and its error at a number of active units is read between the strengths, on logarithmic axes.

Rows stop one by one, and the test's codes are solved to a tolerance of 1e-4: what has not settled
counts as active, and would burden L1 most. The control "soft, debiased" fits L1's entries again on
their support. OMP in the dictionaries of L1 and CEL0 tells what the dictionary does from what the
coding does. A random dictionary, scikit-learn's learner and principal components stand beside. The
full budget learns with the paper's settings in place of those that suit small patches.
Whether the ratio of errors nears one in denser codes is reported, and no part of the verdict: the
paper states the gain at high sparsity.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sparsecraft.core.catalog import Paper
from sparsecraft.core.penalties import AbsTopK
from sparsecraft.domains.receptive_fields import analyse
from sparsecraft.lab.claims.cells import Cell, Cells, own_arms
from sparsecraft.lab.claims.claim import Budget, Claim, Contrast, FullScale
from sparsecraft.lab.claims.dictionary_baselines import (
    left_by_components,
    left_by_pursuit,
    random_atoms,
    scikit_learn_atoms,
)
from sparsecraft.lab.claims.dictionary_sweeps import (
    PAPER,
    RATE,
    fitted,
    learned,
    left_by_codes,
    work_of,
)
from sparsecraft.lab.claims.natural_images import NaturalPatches, natural_patches
from sparsecraft.lab.evidence.table import Row
from sparsecraft.lab.evidence.verdict import StatedDifference

SIDE = 8
SIZES = {"smoke": (12, 32, 48), "small": (64, 128, 256), "full": (500, 1000, 2000)}
"""Atoms of the smaller, the middle and the larger dictionary, the last four times the first."""
ATOMS = SIZES["small"][1]
FEW, MANY = "cel0 n atoms", "soft 4n atoms"
"""The series of a smaller dictionary for CEL0, and of a larger one for soft."""
TARGETS = (3, 5, 10, 20)
PURSUED = (5, 10)
"""Active units of each row that orthogonal matching pursuit is run for."""
SPARSE = 5
STRENGTHS: Mapping[str, tuple[float, ...]] = {
    "soft": (1.0, 0.6, 0.36, 0.2, 0.1, 0.05),
    "hard": (0.3, 0.12, 0.05, 0.02, 0.007, 0.0025),
    "half": (0.35, 0.16, 0.075, 0.035, 0.015, 0.006),
    "cel0": (0.3, 0.12, 0.05, 0.02, 0.008, 0.003),
}
POWERS = {"soft": 1.0, "hard": 2.0, "half": 1.5, "cel0": 2.0}
"""A row of c times the norm needs c to this power times the strength, for a code as sparse."""
BATCHES = 150
METRIC, CURVE = "log error", "unexplained variance"
FACTOR = 1.5


def arm(series: str, active: int) -> str:
    """Returns the name of an arm at a number of active units."""
    return f"{series}, active={active}"


def _contrast(text: str, unit: str, effect: float, terms: Mapping[str, float]) -> Contrast:
    stated = StatedDifference(text=text, unit=unit, direction="greater", smallest_effect=effect)
    return Contrast(stated=stated, metric=METRIC, terms=terms)


STATED = (
    _contrast(
        f"at {SPARSE} active units soft thresholding leaves {FACTOR:g} times the error of CEL0",
        "log of soft's error over CEL0's",
        math.log(FACTOR),
        {arm("soft", SPARSE): 1, arm("cel0", SPARSE): -1},
    ),
    _contrast(
        f"at {SPARSE} active units soft with four times the atoms leaves more error than CEL0",
        "log of soft's error with four times the atoms over CEL0's",
        0.05,
        {arm(MANY, SPARSE): 1, arm(FEW, SPARSE): -1},
    ),
)


def run(budget: Budget, seeds: Sequence[int], cells: Cells) -> list[Row]:
    """Returns what every method leaves, one cell for each method, size and seed."""
    asked = [
        Cell(series, seed, settings)
        for seed in seeds
        for series, settings in _settings(budget).items()
    ]
    return own_arms(cells.rows(measure, asked))


def _settings(budget: Budget) -> dict[str, dict[str, Any]]:
    size = {"batches": BATCHES, "rows": 30_000, "test": 2_000, "side": SIDE, "every": 1}
    if budget == "smoke":
        size |= {"batches": 3, "rows": 600, "test": 100, "every": 3}
    if budget == "full":
        size |= {"batches": PAPER["batches"], "rows": 1_000_000, "test": 20_000, "side": 16}
        size |= {"as_in_paper": True}
    few, atoms, many = SIZES[budget]
    return {
        **{name: {**size, "method": name, "atoms": atoms} for name in STRENGTHS},
        FEW: {**size, "method": "cel0", "atoms": few},
        MANY: {**size, "method": "soft", "atoms": many},
        "baselines": {**size, "method": None, "atoms": atoms},
    }


def strengths_of(name: str, settings: Mapping[str, Any]) -> tuple[float, ...]:
    """Returns a method's sweep; patches of twice the side have twice the norm.

    Example:
        >>> strengths_of("cel0", {"side": 16, "every": 3})
        (1.2, 0.08)
    """
    factor = (settings["side"] / SIDE) ** POWERS[name]
    return tuple(each * factor for each in STRENGTHS[name][:: settings["every"]])


def measure(cell: Cell) -> dict[str, float]:
    """Returns "arm | metric" to value for one method at all its strengths, or the baselines."""
    settings = cell.settings
    data = natural_patches(
        cell.seed, size=settings["side"], rows=settings["rows"], held_out=settings["test"]
    )
    if settings["method"] is None:
        return dict(_baselines(data, settings, cell.seed))
    return dict(_swept(data, cell))


def _swept(data: NaturalPatches, cell: Cell) -> Iterator[tuple[str, float]]:
    """Yields what one method finds over its sweep, read at the targets."""
    name, series = cell.settings["method"], cell.arm
    strengths = strengths_of(name, cell.settings)
    learners = [
        learned(data.train, name, strength, cell.settings, cell.seed) for strength in strengths
    ]
    points = [
        left_by_codes(learner.components_, data.test, name, strength)
        for learner, strength in zip(learners, strengths, strict=True)
    ]
    yield from _read(series, [(active, error) for active, error, _ in points])
    if name == "soft":
        yield from _read(f"{series} debiased", [(active, again) for active, _, again in points])
    nearest = min(range(len(points)), key=lambda i: abs(math.log(points[i][0] / SPARSE)))
    learner, at = learners[nearest], arm(series, SPARSE)
    report = learner.report_
    yield f"{at} | dead atoms", report.dead / report.atoms
    yield f"{at} | rows given up", report.discarded / report.rows
    yield f"{at} | steps shortened", report.shortened / report.batches
    if cell.settings.get("as_in_paper"):
        yield f"{at} | coding steps shortened", report.coding_shortened / report.batches
    fields = analyse(learner.components_).summary()
    for fact in ("Gabor share", "median circular variance", "complex share"):
        yield f"{at} | {fact}", fields[fact]
    for active in PURSUED:
        left = left_by_pursuit(learner.components_, data.test, active)
        yield from _exact(f"{series} dictionary OMP", active, left)


def at_active(points: Sequence[tuple[float, float]], active: float) -> tuple[float, bool]:
    """Returns the log of the error at a number of active units, and whether it lies outside.

    Args:
        points: (active units, error) of a sweep.
        active: Where to read; outside the sweep the nearest two points are prolonged.

    Example:
        >>> log_error, outside = at_active([(2.0, 0.4), (8.0, 0.1)], 4.0)
        >>> round(math.exp(log_error), 3), outside
        (0.2, False)
    """
    points = sorted((math.log(a), math.log(e)) for a, e in points if a > 0)
    x = math.log(active)
    index = sum(a <= x for a, _ in points)
    outside = index in (0, len(points))
    index = min(max(index, 1), len(points) - 1)
    (left, low), (right, high) = points[index - 1 : index + 1]
    return low + (high - low) * (x - left) / max(right - left, 1e-12), outside


def _read(series: str, points: Sequence[tuple[float, float]]) -> Iterator[tuple[str, float]]:
    for active in TARGETS:
        log_error, outside = at_active(points, active)
        yield f"{arm(series, active)} | {METRIC}", log_error
        yield f"{arm(series, active)} | {CURVE}", math.exp(log_error)
        yield f"{arm(series, active)} | outside the sweep", float(outside)


def _baselines(
    data: NaturalPatches, settings: Mapping[str, Any], seed: int
) -> Iterator[tuple[str, float]]:
    """Yields a random dictionary, exact top-k coding, scikit-learn's learner, and PCA."""
    count = settings["atoms"]
    atoms = random_atoms(count, data.train.shape[1], seed)
    strengths = strengths_of("cel0", settings)
    points = [left_by_codes(atoms, data.test, "cel0", each)[:2] for each in strengths]
    yield from _read("random dictionary cel0", points)
    work = work_of(settings)
    theirs = scikit_learn_atoms(
        data.train,
        count,
        strength=strengths_of("soft", {**settings, "every": 1})[2],
        batches=work["batches"],
        batch=work["batch_size"],
        seed=seed,
    )
    for active in PURSUED:
        ours = fitted(data.train, penalty=AbsTopK(k=active), n_components=count, seed=seed, **work)
        dictionaries = {
            "AbsTopK": ours.components_,
            "random": atoms,
            "scikit-learn": theirs,
        }
        for name, each in dictionaries.items():
            left = left_by_pursuit(each, data.test, active)
            yield from _exact(f"{name} dictionary OMP", active, left)
        yield from _exact("PCA", active, left_by_components(data.train, data.test, active))


def _exact(series: str, active: int, error: float) -> Iterator[tuple[str, float]]:
    yield f"{arm(series, active)} | {METRIC}", math.log(error)
    yield f"{arm(series, active)} | {CURVE}", error


CLAIM = Claim(
    number=9,
    title="At equal sparsity an L0-like penalty rebuilds natural images better than L1",
    paper=Paper(
        "Rentzeperis et al.", 2023, "2301.10002", number=9, title="Beyond l1 sparse coding in V1"
    ),
    version=1,
    stated=STATED,
    scale=f"{ATOMS} atoms, {SIDE}x{SIDE} patches of scikit-image's pictures",
    full_scale=FullScale(
        model="dictionaries of 500 to several thousand atoms",
        data=(
            "137 images of van Hateren's collection (`read_van_hateren`), standardised, whitened, "
            "1e6 patches of 16 by 16"
        ),
        recipe=(
            "`DictionaryLearning(penalty=name, strength=strength, **as_in_paper(name, atoms))` for "
            "each strength; errors and receptive fields at equal active units."
        ),
        methods=({"method": "sparse_coding", "penalty": "cel0", "strength": 0.27},),
        hyperparameters={
            "batches": 4000,
            "batch_size": 250,
            "step": 0.05,
            "learning_rate": 5e-3,
            "tolerance": 1e-2,
            "max_steps": 5000,
        },
    ),
    seeds={"smoke": 1, "small": 5, "full": 5},
    run=run,
    curve=CURVE,
    tuning=(
        f"one rate of the dictionary for all arms, {RATE:g}, the better of 0.005 and 0.02 for "
        "soft, hard, half and CEL0 on the validation picture of seed 101; 6 strengths for each "
        "method, laid on validation pictures of seeds 101 to 103 so that codes have about 2 to "
        "25 active units"
    ),
    remark=(
        "Most of what soft loses is shrinkage: with values fitted anew on its support it leaves "
        "15 % unexplained at 5 active units where it left 28 %, CEL0 12 %. Coded by orthogonal "
        "matching pursuit, soft's dictionary is the better one (18 % against 21 %). So the gain "
        "lies in how codes are made, less in what is learned. That errors come together in denser "
        "codes, which is no claim of the paper, was dropped from what is stated after a pilot did "
        "not show it."
    ),
)
