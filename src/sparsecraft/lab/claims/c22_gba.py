"""Claim 22: groups of latents with target frequencies of their own recover features, consistently.

Chen et al. (2025) let biases hold each group of latents to a target frequency; some group is then
in resonance with each feature, however often it occurs. Their dictionaries recover the features of
sparse mixtures, more than one target for all latents does (BA), and two trainings agree on more
latents than those of TopK do.

The mixtures have 128 random directions in 64 dimensions, about four in a row, the most frequent 30
times as often as the least (Zipf), and rows of norm one. For the resonance all features are equally
frequent, and one target for all latents lies below, near and far above their frequency f. Real
activations are those of a byte decoder on Python source, behind its first block. A seed draws
features, rows or model; consistency is that of two trainings that differ in their first weights
and groups. TopK has the k that is nearest to what GBA uses in the same seed.

A feature is recovered if some latent has a cosine above 0.9 with it; consistency is the share of
latents that fire and have a cosine above 0.9 with a latent of the other training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsecraft.core.catalog import Paper
from sparsecraft.core.dictionary_similarity import feature_consistency, recovery_rate
from sparsecraft.core.fidelity import ReconstructionSums
from sparsecraft.core.seeds import derive
from sparsecraft.lab.claims.cells import Cell, Cells
from sparsecraft.lab.claims.claim import Budget, Claim, Contrast, FullScale
from sparsecraft.lab.claims.gradient_dictionaries import Harvest, source_subject
from sparsecraft.lab.claims.synthetic_dictionaries import SparseMixture
from sparsecraft.lab.evidence.table import Row
from sparsecraft.lab.evidence.verdict import StatedDifference
from sparsecraft.methods.codes.group_bias_adaptation import GroupBiasAdaptation, gba_autoencoder
from sparsecraft.methods.codes.relu import ReLU
from sparsecraft.methods.codes.topk import TopK
from sparsecraft.model.sae import SAETraining, SparseAutoencoder

ZIPF = SparseMixture(atoms=128, width=64, active=4.0, exponent=0.7)
EQUAL = SparseMixture(atoms=128, width=64, active=4.0)
GBA, TOPK, L1 = "GBA", "TopK", "L1"
HIGH, LOW, GROUPS = 0.1, 0.005, 6
BA_TARGETS = (0.1, 0.03, 0.01, 0.004)
BEST_BA = 0.03
RATIOS = (0.15, 0.5, 2.0, 4.0, 10.0)
BELOW, NEAR, ABOVE = RATIOS[0], 2.0, RATIOS[-1]
REAL = "source bytes"
RECOVERY, CONSISTENCY = "recovery", "consistency"
SMALLEST_RECOVERY, SMALLEST_CONSISTENCY, SMALLEST_RESONANCE = 0.05, 0.05, 0.2


def ba(target: float) -> str:
    """Returns the name of the arm in which all latents have one target."""
    return f"BA, p={target:g}"


def resonance(ratio: float) -> str:
    """Returns the name of the arm whose target is so many times the features' frequency."""
    return f"equal frequencies BA, p/f={ratio:g}"


def _contrast(text: str, metric: str, unit: str, smallest: float, more: str, less: str) -> Contrast:
    stated = StatedDifference(text=text, unit=unit, direction="greater", smallest_effect=smallest)
    return Contrast(stated=stated, metric=metric, terms={more: 1.0, less: -1.0})


STATED = (
    _contrast(
        "GBA recovers more features of unequal frequency than the best single target",
        RECOVERY,
        "share of features, GBA less BA",
        SMALLEST_RECOVERY,
        GBA,
        ba(BEST_BA),
    ),
    _contrast(
        "two trainings of GBA agree on more latents than two of TopK, on mixtures",
        CONSISTENCY,
        "share of latents, GBA less TopK",
        SMALLEST_CONSISTENCY,
        GBA,
        TOPK,
    ),
    _contrast(
        "and on activations of a language model",
        CONSISTENCY,
        "share of latents, GBA less TopK",
        SMALLEST_CONSISTENCY,
        f"{REAL} {GBA}",
        f"{REAL} {TOPK}",
    ),
    _contrast(
        f"a target near the frequency recovers more than one of {BELOW:g} times the frequency",
        RECOVERY,
        "share of features, near less below",
        SMALLEST_RESONANCE,
        resonance(NEAR),
        resonance(BELOW),
    ),
    _contrast(
        f"a target near the frequency recovers more than one of {ABOVE:g} times the frequency",
        RECOVERY,
        "share of features, near less above",
        SMALLEST_RESONANCE,
        resonance(NEAR),
        resonance(ABOVE),
    ),
)


def run(budget: Budget, seeds: Sequence[int], cells: Cells) -> list[Row]:
    """Returns what every dictionary finds: mixtures, resonance and real activations."""
    settings = _settings(budget)
    planned = [Cell(kind, seed, {**settings, "kind": kind}) for kind in PARTS for seed in seeds]
    return [_own_arm(row) for row in cells.rows(measure, planned)]


def _own_arm(row: Row) -> Row:
    """Returns the row of one arm, whose name stands before its metric in a cell."""
    name, _, metric = row.metric.rpartition(" | ")
    return Row(name, row.seed, metric, row.value)


def _settings(budget: Budget) -> dict[str, Any]:
    sizes = {
        "rows": 49_152,
        "steps": 1000,
        "batch": 1024,
        "expansion": 8,
        "buffer": 8192,
        "gamma": 0.05,
        "rates": {"bias": 1e-2, TOPK: 3e-3, L1: 3e-3},
        "l1": 0.05,
        "model_steps": 400,
        "model_rate": 3e-3,
        "windows": 480,
        "test_windows": 128,
        "groups": [GROUPS],
        "highs": [HIGH],
    }
    if budget == "smoke":
        tiny = {"rows": 2048, "steps": 6, "model_steps": 3, "windows": 16, "test_windows": 8}
        return {**sizes, **tiny, "expansion": 2, "batch": 512}
    if budget == "small":
        return sizes
    return {
        **sizes,
        "rows": 500_000,
        "steps": 10_000,
        "windows": 4096,
        "groups": [3, GROUPS, 12, 20],
        "highs": [HIGH, 0.3, 0.5],
    }


def measure(cell: Cell) -> dict[str, float]:
    """Returns "arm | metric" to value for one kind of data."""
    return PARTS[cell.settings["kind"]](cell.seed, cell.settings)


def mixtures(seed: int, settings: Mapping[str, Any]) -> dict[str, float]:
    """Returns recovery, fidelity and consistency of all arms on features of unequal frequency."""
    features = ZIPF.directions(seed)
    x, test = (ZIPF.draw(settings["rows"], seed, part).x for part in ("training", "test"))
    found = _pairs(x, test, seed, settings, "", features)
    for target in BA_TARGETS:
        sae = trained(_bias(settings, target, target, 1), x, seed, settings)
        found |= _labelled(ba(target), _facts(sae, test, features))
    for groups in settings["groups"]:
        for high in settings["highs"]:
            if (groups, high) != (GROUPS, HIGH):
                sae = trained(_bias(settings, high, LOW, groups), x, seed, settings)
                label = f"{GBA} of {groups} groups from {high:g}"
                found |= _labelled(label, _facts(sae, test, features))
    return found


def resonances(seed: int, settings: Mapping[str, Any]) -> dict[str, float]:
    """Returns the recovery by one target for all latents, from below to above the frequency."""
    features, frequency = EQUAL.directions(seed), EQUAL.active / EQUAL.atoms
    x, test = (EQUAL.draw(settings["rows"], seed, part).x for part in ("training", "test"))
    found = {}
    for ratio in RATIOS:
        target = ratio * frequency
        sae = trained(_bias(settings, target, target, 1), x, seed, settings)
        found |= _labelled(resonance(ratio), _facts(sae, test, features))
    return found


def real_activations(seed: int, settings: Mapping[str, Any]) -> dict[str, float]:
    """Returns fidelity and consistency of GBA, TopK and L1 on a byte decoder's activations."""
    subject = source_subject(seed, settings)
    x, test = (Harvest.of(subject, part).x for part in (subject.train, subject.test))
    return _pairs(x, test, seed, settings, f"{REAL} ", None)


PARTS = {"mixtures": mixtures, "equal frequencies": resonances, REAL: real_activations}


def _pairs(
    x: Tensor,
    test: Tensor,
    seed: int,
    settings: Mapping[str, Any],
    prefix: str,
    features: Tensor | None,
) -> dict[str, float]:
    """Returns the facts of GBA, TopK at its L0, and L1, each trained twice."""
    found: dict[str, float] = {}
    k = 1
    for name in (GBA, TOPK, L1):
        activation = {
            GBA: lambda: _bias(settings, HIGH, LOW, GROUPS),
            TOPK: lambda k=k: TopK(k=k),
            L1: lambda: ReLU(l1=settings["l1"]),
        }[name]()
        twice = [trained(activation, x, derive(seed, "run", i), settings) for i in range(2)]
        facts = _facts(twice[0], test, features)
        if name == GBA:
            k = max(1, round(facts["L0"]))
        found |= _labelled(prefix + name, {**facts, CONSISTENCY: _agreement(twice, test)})
    return found


def _bias(settings: Mapping[str, Any], high: float, low: float, groups: int) -> GroupBiasAdaptation:
    buffer = max(settings["buffer"], round(11 / low))
    step = settings["gamma"]
    return GroupBiasAdaptation(
        groups=groups, high=high, low=low, buffer=buffer, step_down=step, step_up=step
    )


def trained(
    activation: GroupBiasAdaptation | TopK | ReLU,
    x: Tensor,
    seed: int,
    settings: Mapping[str, Any],
) -> SparseAutoencoder:
    """Returns a trained dictionary of rows of norm one: tied for bias adaptation, else not."""
    width, latents = x.shape[1], settings["expansion"] * x.shape[1]
    rates = settings["rates"]
    if isinstance(activation, GroupBiasAdaptation):
        sae, rate = gba_autoencoder(width, latents, activation, seed=seed), rates["bias"]
    else:
        sae = SparseAutoencoder(width, latents, activation, row_norm="unit", seed=seed)
        rate = rates[TOPK if isinstance(activation, TopK) else L1]
    training = SAETraining(
        steps=settings["steps"],
        batch=settings["batch"],
        learning_rate=rate,
        seed=seed,
        held_out=0.0,
    )
    return sae.fit(x, training)


@torch.no_grad()
def _facts(sae: SparseAutoencoder, test: Tensor, features: Tensor | None) -> dict[str, float]:
    """Returns fidelity and sparsity on the test, and the recovery of the true features."""
    sums, entries, fired = ReconstructionSums(), 0, torch.zeros(sae.d_sae, dtype=torch.int64)
    for part in test.split(4096):
        inner, _ = sae.normalise_rows(part)
        code = sae.sparse_encode(part)
        sums.add(inner, sae.decode(code))
        fired += code.fired()
        entries += len(code.values)
    found = {
        "FVU": sums.fvu,
        "L0": entries / len(test),
        "alive share": float((fired > 0).double().mean()),
    }
    if features is not None:
        found[RECOVERY] = recovery_rate(sae.decoder_rows(), features)
    return found


@torch.no_grad()
def _agreement(pair: Sequence[SparseAutoencoder], test: Tensor) -> float:
    """Returns the share of latents that fire and are found again in the other training."""
    alive = [sum(sae.sparse_encode(part).fired() for part in test.split(4096)) > 0 for sae in pair]
    return feature_consistency([sae.decoder_rows() for sae in pair], chosen=alive).share


def _labelled(name: str, facts: Mapping[str, float]) -> dict[str, float]:
    return {f"{name} | {metric}": value for metric, value in facts.items()}


CLAIM = Claim(
    number=22,
    title="Groups of latents with target frequencies recover features, and the same ones each time",
    paper=Paper(
        "Chen et al.",
        2025,
        "2506.14002",
        number=22,
        title="Taming Polysemanticity in LLMs: Provable Feature Recovery via Sparse Autoencoders",
    ),
    version=1,
    stated=STATED,
    scale="512 latents on mixtures of 128 features, 768 on a byte decoder's activations",
    full_scale=FullScale(
        model="Qwen2.5-1.5B, MLP outputs of layers 2, 13 and 26",
        data="subsets of the Pile, 100 million tokens, rows divided by their norm",
        recipe=(
            "Train 66 thousand latents with each method on six seeds, at matched L0. Compare the "
            "loss at a given L0, and the share of the latents that fire most whose maximal cosine "
            "with another seed's exceeds 0.9."
        ),
        methods=(
            {"method": "gba", "groups": 10, "high": 0.1, "low": 1e-3},
            {"method": "gba", "groups": 1, "high": 0.01, "low": 0.01},
            {"method": "topk_sae", "k": 50},
            {"method": "relu_sae", "l1": 1.0},
        ),
        hyperparameters={"d_sae": 66_000, "learning_rate": 1e-4, "batch": 8192, "buffer": 409_600},
    ),
    seeds={"smoke": 1, "small": 3, "full": 6},
    run=run,
    curve=None,
    tuning=(
        "on seed 100 and validation rows by recovery, four settings for each arm: GBA's learning "
        "rate and highest and lowest target, BA's target, k and the learning rate of TopK (k is "
        "then GBA's L0), L1's weight; the other rates as those of GBA (for BA) and TopK (for L1)"
    ),
)
