"""Claim 02: at high N:M sparsity, letting masked weights fade beats masking them from the start.

Bambhaniya et al. (2024) see no gain at 2:4 and a growing one towards 1:32, which they put down to
less noise in Adam's second moment. Here a byte decoder of two layers learns the standard library's
source with N:M feed-forward layers; what is scored is the exported N:M model, in bits per byte of
held-out files. MDGF with an exponential decay stands against SR-STE, at equal steps.

Beside them stand the dense model, a random N:M mask held from the start, and the dense model cut
to N:M once at its end. Within a seed all arms share initial weights, files and windows. The second
moments are those of all feed-forward weights after the last step, corrected for their start.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsecraft.core import catalog
from sparsecraft.core.catalog import Paper
from sparsecraft.core.patterns import parse_pattern
from sparsecraft.lab.claims import source_bytes
from sparsecraft.lab.claims.cells import Cell, Cells
from sparsecraft.lab.claims.claim import Budget, Claim, Contrast, FullScale
from sparsecraft.lab.evidence.table import Row
from sparsecraft.lab.evidence.verdict import StatedDifference
from sparsecraft.model.pruning import prune
from sparsecraft.model.sparsifier import Sparsifier

LAYERS, WIDTH, CONTEXT = 2, 128, 64
STEPS = 400
FEED_FORWARD = ("*.fc1", "*.fc2")
LOW, HIGH = ("2:4",), ("1:16", "1:32")
FULL_PATTERNS = ("2:4", "1:8", "1:16", "1:32")
# The second moment remembers 20 steps, a twentieth of the training: the end of it.
BETAS = (0.9, 0.95)
# Less than one percent of what a byte costs here.
SMALLEST_EFFECT = 0.02

METRIC = "bits per byte"
VARIANCE = "log10 variance of the second moment"
MEAN = "log10 mean of the second moment"
ONE_SHOT = "one-shot "

RATE = 3e-3
# Settings by series, chosen at 1:16 on the validation files of seed 100; see `tuning`.
METHODS: Mapping[str, Mapping[str, Any]] = {
    "random": {"method": "static"},
    "ste": {"method": "ste"},
    "sr-ste": {"method": "sr_ste", "shrinkage": 2e-4},
    "mdgf exponential": {"method": "mdgf", "decay": "exponential", "finetune": 0.1},
    "mdgf linear": {"method": "mdgf", "decay": "linear", "finetune": 0.1},
    "sdgf stepwise": {"method": "sdgf", "schedule": "stepwise", "finetune": 0.1},
    "sdgf geometric": {"method": "sdgf", "schedule": "geometric", "finetune": 0.1},
    "snip": {"method": "static", "source": "snip"},
}
SMALL = ("sr-ste", "mdgf exponential")


def arm(series: str, pattern: str) -> str:
    """Returns the name of an arm, with its sparsity as the axis of the curve."""
    return f"{series}, sparsity={1 - _density(pattern):g}"


def _density(pattern: str) -> float:
    return parse_pattern(pattern).fixed_density or 1.0


def _gain(patterns: Sequence[str], weight: float = 1.0) -> dict[str, float]:
    """Returns SR-STE minus MDGF, averaged over patterns."""
    return {
        arm(series, pattern): sign * weight / len(patterns)
        for pattern in patterns
        for series, sign in (("sr-ste", 1), ("mdgf exponential", -1))
    }


STATED = (
    Contrast(
        stated=StatedDifference(
            text="at 1:16 and 1:32 MDGF's exported model needs fewer bits than SR-STE's",
            unit="bits per byte saved",
            direction="greater",
            smallest_effect=SMALLEST_EFFECT,
        ),
        metric=METRIC,
        terms=_gain(HIGH),
    ),
    Contrast(
        stated=StatedDifference(
            text="what MDGF saves at 1:16 and 1:32 is more than at 2:4",
            unit="bits per byte more",
            direction="greater",
            smallest_effect=SMALLEST_EFFECT,
        ),
        metric=METRIC,
        terms={**_gain(HIGH), **_gain(LOW, -1.0)},
    ),
    Contrast(
        stated=StatedDifference(
            text="at 1:16 and 1:32 Adam's second moment varies less under MDGF than under SR-STE",
            unit="decades of variance less",
            direction="greater",
        ),
        metric=VARIANCE,
        terms=_gain(HIGH),
    ),
)


def run(budget: Budget, seeds: Sequence[int], cells: Cells) -> list[Row]:
    """Returns bits per byte and second moments of every arm; see the module."""
    rows = cells.rows(measure, [cell for seed in seeds for cell in _grid(budget, seed)])
    return [_own_arm(row) for row in rows]


def _own_arm(row: Row) -> Row:
    """Returns the row; one of the dense model cut at its end becomes an arm of its own."""
    if not row.metric.startswith(ONE_SHOT):
        return row
    return Row(arm("one-shot", row.metric.removeprefix(ONE_SHOT)), row.seed, METRIC, row.value)


def _grid(budget: Budget, seed: int) -> Iterator[Cell]:
    if budget == "smoke":
        for series in ("dense", "random", *SMALL):
            yield _cell(series, "1:16", seed, steps=6, width=64)
        return
    yield _cell("dense", "", seed)
    series_by_pattern = {pattern: list(SMALL) for pattern in (*LOW, *HIGH)}
    series_by_pattern["1:16"].append("random")
    if budget == "full":
        series_by_pattern = {pattern: list(METHODS) for pattern in FULL_PATTERNS}
        # The geometric decay to 1:32 passes through groups of 256, twice a layer's inputs.
        series_by_pattern["1:32"].remove("sdgf geometric")
    for pattern, chosen in series_by_pattern.items():
        for series in chosen:
            yield _cell(series, pattern, seed)


def _cell(
    series: str,
    pattern: str,
    seed: int,
    *,
    steps: int = STEPS,
    width: int = WIDTH,
    **changed: Any,
) -> Cell:
    settings: dict[str, Any] = {"steps": steps, "width": width, "rate": RATE}
    if series == "dense":
        return Cell(series, seed, {**settings, **changed, "cut to": [*LOW, *HIGH]})
    settings |= {**METHODS[series], "pattern": pattern, **changed}
    return Cell(arm(series, pattern), seed, settings)


def measure(cell: Cell) -> dict[str, float]:
    """Returns what the exported model of one arm gives for one seed."""
    settings = dict(cell.settings)
    steps, width, rate = (settings.pop(name) for name in ("steps", "width", "rate"))
    patterns = settings.pop("cut to", ())
    data = source_bytes.load_source(cell.seed)
    model = source_bytes.byte_model(LAYERS, width, cell.seed, CONTEXT)
    sparsifier = _sparsifier(model, data, steps, cell.seed, settings) if settings else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=BETAS, weight_decay=0.01)
    source_bytes.train(
        model,
        data.train,
        seed=cell.seed,
        steps=steps,
        rate=rate,
        sparsifier=sparsifier,
        optimizer=optimizer,
    )
    if sparsifier is not None:
        sparsifier.finalize()
    weights = _feed_forward(model)
    found = {
        METRIC: source_bytes.bits_per_byte(model, data.test),
        f"validation {METRIC}": source_bytes.bits_per_byte(model, data.validation),
        "feed-forward density": _share_of_nonzero(weights),
        "learning rate": rate,
        **_second_moment([optimizer.state[weight] for weight in weights], steps),
    }
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    for pattern in patterns:
        prune(model, "magnitude", pattern=pattern, targets=FEED_FORWARD)
        found[f"{ONE_SHOT}{pattern}"] = source_bytes.bits_per_byte(model, data.test)
        model.load_state_dict(trained)
    return found


def _sparsifier(
    model: source_bytes.ByteModel,
    data: source_bytes.Source,
    steps: int,
    seed: int,
    settings: Mapping[str, Any],
) -> Sparsifier:
    return Sparsifier(
        model,
        catalog.restore(settings),
        total_steps=steps,
        targets=FEED_FORWARD,
        seed=seed,
        calibration=source_bytes.calibration(data.train, CONTEXT),
        loss_function=_next_byte,
    )


def _next_byte(logits: Tensor, batch: Mapping[str, Any], temperature: float) -> Tensor:
    """Returns the mean cross-entropy of each byte given those before it, for SNIP."""
    flat = logits[:, :-1].flatten(0, 1) / temperature
    return nn.functional.cross_entropy(flat, batch["input_ids"][:, 1:].flatten())


def _feed_forward(model: nn.Module) -> list[nn.Parameter]:
    return [
        p for name, p in model.named_parameters() if name.endswith(("fc1.weight", "fc2.weight"))
    ]


def _share_of_nonzero(weights: Sequence[Tensor]) -> float:
    return sum(int((w != 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def _second_moment(states: Sequence[Mapping[str, Tensor]], steps: int) -> dict[str, float]:
    """Returns mean and variance over all entries of Adam's second moment, as logarithms.

    The variance grows with the square of the gradients' scale; that of v / mean(v) does not.
    """
    moments = torch.cat([state["exp_avg_sq"].flatten().double() for state in states])
    moments /= 1 - BETAS[1] ** steps
    variance, mean = (math.log10(float(each)) for each in (moments.var(), moments.mean()))
    return {
        VARIANCE: variance,
        MEAN: mean,
        "log10 variance of the second moment over its mean": variance - 2 * mean,
    }


CLAIM = Claim(
    number=2,
    title="Letting masked weights fade beats masking them from the start at high N:M sparsity",
    paper=Paper(
        "Bambhaniya et al.",
        2024,
        "2402.04744",
        number=2,
        title="Progressive Gradient Flow for Robust N:M Sparsity Training in Transformers",
    ),
    version=1,
    stated=STATED,
    scale="0.5M parameters, Python source as bytes",
    full_scale=FullScale(
        model="ViT-Base, N:M in the feed-forward layers; SwinV2-Base and T5X-Base likewise",
        data="ImageNet-1k; GLUE and translation for T5X",
        recipe=(
            "Train from scratch for 350 epochs with AdamW, cosine to 1e-7 after 15 epochs of "
            "warm-up, binary cross-entropy, dropout and drop path 0.1, mixup 0.5, RandAugment, "
            "gradients clipped to 1; score the exported N:M model on the validation images."
        ),
        methods=tuple(
            {"method": name, "pattern": pattern, **options}
            for pattern in ("2:4", "1:16", "1:32")
            for name, options in (
                ("ste", {}),
                ("sr_ste", {"shrinkage": 2e-4}),
                ("mdgf", {"decay": "exponential", "beta": 1e-4, "finetune": 0.0}),
                ("sdgf", {"schedule": "geometric", "finetune": 0.0}),
            )
        ),
        hyperparameters={
            "epochs": 350,
            "batch": 4096,
            "rate": 1e-3,
            "weight_decay": 0.01,
            "warm_up_epochs": 15,
            "clip_norm": 1.0,
        },
    ),
    seeds={"smoke": 1, "small": 3, "full": 5},
    run=run,
    curve=METRIC,
    remark=(
        "The gain in quality is there, and grows with sparsity; what does not hold is the "
        "indicator. MDGF's second moments are larger as a whole (their mean is 2.4 times SR-STE's "
        "at 1:16), and so is their absolute variance; relative to the squared mean it is smaller, "
        "0.31 against 0.40 decades. Why they are larger was not found out. Tried before the run: "
        "both memories of Adam, 0.999 and 0.95, on pilot seeds."
    ),
    tuning=(
        f"learning rate {RATE:g} for every arm, the best of 0.001, {RATE:g} and 0.01 for sr-ste "
        f"and mdgf, and of {RATE:g} and 0.01 for dense; then one setting each: shrinkage of 0.0002 "
        "(0.002 was worse) for sr-ste, finetune of 0.1 (0.4 was worse) for mdgf. All at 1:16 on "
        "the validation files of seed 100, which no budget runs; other arms take the common rate"
    ),
)
