"""The bench of claim 34: prompts, counterfactuals, and what a dictionary reaches on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecraft.core.fidelity import ReconstructionSums
from sparsecraft.core.kinds import Activation
from sparsecraft.domains.interpretability import ioi, ioi_model
from sparsecraft.domains.interpretability.control import (
    CEILING,
    FLOOR,
    Approximation,
    EditTable,
    agreement_at_weight,
    compare_edits,
    evaluate_approximation,
    logit_difference,
)
from sparsecraft.domains.interpretability.editing import f1_edit, greedy_edit
from sparsecraft.domains.interpretability.feature_scores import feature_f1, value_masks
from sparsecraft.domains.interpretability.latent_amplitudes import amplitudes
from sparsecraft.domains.interpretability.nodes import Node, Outputs, activations, outputs
from sparsecraft.domains.interpretability.supervised_dictionary import SupervisedDictionary
from sparsecraft.model.sae import SparseAutoencoder
from sparsecraft.model.sae.training_settings import SAETraining

NODE = Node("blocks.1.middle")
EXPANSION = 8
SAE_BATCH, SAE_RATE = 512, 1e-3
SIZES = (1, 2, 4, 8)
"""Latents taken out, and as many put in."""

SUFFICIENCY, INSUFFICIENCY, EQUAL_NUMBER, EQUAL_WEIGHT = (
    "sufficiency",
    "distance from full sufficiency",
    "agreement, one out and one in",
    "agreement at equal weight",
)

CHOICES: dict[str, tuple[Callable[[float], float], tuple[str, ...]]] = {
    EQUAL_NUMBER: (lambda value: value, (EQUAL_NUMBER,)),
    EQUAL_WEIGHT: (lambda value: value, (EQUAL_WEIGHT,)),
    INSUFFICIENCY: (lambda value: -value, (INSUFFICIENCY, SUFFICIENCY)),
}
"""Stated metric to what is greatest for the best autoencoder, and which scores are then its own."""

Tried = tuple[Mapping[str, float], Mapping[str, float]]
"""Scores of an autoencoder on validation prompts, and on test prompts."""


@dataclass(frozen=True)
class Part:
    """Prompts with their counterfactuals, at the node.

    Args:
        given: The prompts.
        new: int64 (rows,), the indirect object of the changed prompts.
        x: (rows, d), activations.
        x_changed: (rows, d), those of the changed prompts.
        says: From activations to logits.
    """

    given: ioi.Prompts
    new: Tensor
    x: Tensor
    x_changed: Tensor
    says: Outputs


@dataclass(frozen=True)
class Bench:
    """What all arms of a seed share.

    Args:
        train: Prompts on which dictionaries are made.
        x: (rows, d), their activations.
        validation: For choices.
        test: For what is reported.
    """

    train: ioi.Prompts
    x: Tensor
    validation: Part
    test: Part


def prepared(model: ioi_model.IOIModel, seed: int, training: int, evaluated: int) -> Bench:
    """Returns the prompts of a seed and the node's activations on them."""
    base, other = ioi.halves(seed)
    train = ioi.prompts(training, seed, None, "dictionary")
    parts = [
        _part(model, ioi.prompts(evaluated, seed, base, label), seed, other)
        for label in ("validation", "test")
    ]
    return Bench(train, activations(model, [NODE], train.tokens)[0], *parts)


def _part(model: ioi_model.IOIModel, given: ioi.Prompts, seed: int, other: Tensor) -> Part:
    changed = ioi.changed(given, "io", seed, other)
    (x,) = activations(model, [NODE], given.tokens)
    (x_changed,) = activations(model, [NODE], changed.tokens)
    return Part(given, changed.io, x, x_changed, outputs(model, NODE, given.tokens))


def trained(x: Tensor, activation: Activation, seed: int, steps: int) -> SparseAutoencoder:
    """Returns an autoencoder of eight times the width, trained on the node's activations."""
    sae = SparseAutoencoder(x.shape[1], EXPANSION * x.shape[1], activation, seed=seed)
    training = SAETraining(
        steps=steps, batch=SAE_BATCH, learning_rate=SAE_RATE, held_out=0.0, seed=seed
    )
    sae.fit(x, training)
    return sae.eval()


@torch.no_grad()
def reached(
    bench: Bench, part: Part, sae: SparseAutoencoder, reference: SupervisedDictionary
) -> dict[str, float]:
    """Returns what an autoencoder reaches on prompts."""
    scores = feature_f1(amplitudes(sae, bench.x) != 0, value_masks(bench.train.io, len(ioi.NAMES)))
    edits = {
        f"f1 {k}": f1_edit(sae, part.x, part.x_changed, scores.f1, part.given.io, part.new, k)
        for k in SIZES
    }
    edits |= {f"greedy {2 * k}": greedy_edit(sae, part.x, part.x_changed, 2 * k) for k in SIZES}
    table = compare_edits(
        part.says, part.x, part.x_changed, _supervised_edit(part, reference), edits
    )
    sums = ReconstructionSums()
    sums.add(part.x, sae(part.x))
    return {
        **_suffices(part, sae(part.x), bench.x.mean(0)),
        **_agreements(table),
        "best F1 of a name, mean": float(scores.best()[1].mean()),
        "latents with F1 of at least 0.5": scores.share(0.5),
        "FVU": sums.fvu,
        "L0": float((amplitudes(sae, part.x) != 0).sum(1).double().mean()),
    }


def best_of(tried: Sequence[Tried]) -> dict[str, float]:
    """Returns the test scores of the best autoencoders: for each stated metric the best in it.

    So one may be chosen for its reconstructions and another for its edits. Of equals, the one that
    is best in the other stated metrics, in their order, is taken. What is not stated is that of the
    autoencoder with the best edits by one latent.

    Args:
        tried: For each autoencoder the scores on validation prompts, and those on test prompts.
    """

    def order(metric: str) -> Callable[[Tried], tuple[float, ...]]:
        metrics = [metric, *(other for other in CHOICES if other != metric)]
        return lambda each: tuple(CHOICES[name][0](each[0][name]) for name in metrics)

    found = dict(max(tried, key=order(EQUAL_NUMBER))[1])
    for metric, (_, own) in CHOICES.items():
        best = max(tried, key=order(metric))[1]
        found |= {name: best[name] for name in own}
    return found


def _agreements(table: EditTable) -> dict[str, float]:
    by_f1 = [table[f"f1 {k}"] for k in SIZES]
    found = {
        EQUAL_NUMBER: by_f1[0].agreement,
        EQUAL_WEIGHT: agreement_at_weight(by_f1, table[FLOOR], table[CEILING].weight),
        "weight, one out": by_f1[0].weight,
    }
    found |= {f"agreement, {k} out and {k} in": table[f"f1 {k}"].agreement for k in SIZES[1:]}
    return found | {
        f"greedy agreement, {2 * k} latents": table[f"greedy {2 * k}"].agreement for k in SIZES
    }


def ceiling(part: Part, dictionary: SupervisedDictionary, mean: Tensor) -> dict[str, float]:
    """Returns what a supervised dictionary reaches; one code goes out and one comes in."""
    edit = _supervised_edit(part, dictionary)
    score = compare_edits(part.says, part.x, part.x_changed, edit, {})[CEILING]
    return {
        **_suffices(part, dictionary.reconstruct(part.given.attributes), mean),
        EQUAL_NUMBER: score.agreement,
        EQUAL_WEIGHT: score.agreement,
        "weight, one out": score.weight,
    }


def _supervised_edit(part: Part, dictionary: SupervisedDictionary) -> tuple[Tensor, Tensor]:
    known = part.given.attributes
    return dictionary.edit(part.x, known, {"io": part.new}), dictionary.weights(known)["io"]


def _suffices(part: Part, reconstruction: Tensor, mean: Tensor) -> Mapping[str, float]:
    metric = logit_difference(part.given.io, part.given.s)
    found: Approximation = evaluate_approximation(part.says, metric, part.x, reconstruction, mean)
    return {
        SUFFICIENCY: found.sufficiency,
        INSUFFICIENCY: abs(1 - found.sufficiency),
        "necessity": found.necessity,
    }


def floor_agreement(part: Part) -> float:
    """Returns how often the model says the same without an edit."""
    said = part.says(part.x_changed).argmax(1)
    return float((part.says(part.x).argmax(1) == said).double().mean())
