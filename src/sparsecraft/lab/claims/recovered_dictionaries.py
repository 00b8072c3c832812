"""Dictionaries of rows of norm one: trained, compared with true features and with each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsecraft.core.dictionary_similarity import feature_consistency, recovery_rate
from sparsecraft.core.fidelity import ReconstructionSums
from sparsecraft.core.seeds import derive
from sparsecraft.methods.codes.group_bias_adaptation import GroupBiasAdaptation, gba_autoencoder
from sparsecraft.methods.codes.relu import ReLU
from sparsecraft.methods.codes.topk import TopK
from sparsecraft.model.sae import SAETraining, SparseAutoencoder

GBA, TOPK, L1 = "GBA", "TopK", "L1"
RECOVERY, CONSISTENCY = "recovery", "consistency"
ROWS_AT_ONCE = 4096


def rivals(
    adaptation: GroupBiasAdaptation,
    x: Tensor,
    test: Tensor,
    seed: int,
    settings: Mapping[str, Any],
    features: Tensor | None = None,
) -> dict[str, dict[str, float]]:
    """Returns the facts of GBA, of TopK at GBA's L0, and of L1, each trained twice.

    Args:
        adaptation: The groups and targets of GBA.
        x: (rows, d_in), to train on.
        test: (rows, d_in).
        seed: From which both trainings' seeds are derived.
        settings: As `trained` reads them, and "l1".
        features: (n, d_in), the true ones, if they are known.
    """
    found = {GBA: _twice(adaptation, x, test, seed, settings, features)}
    k = max(1, round(found[GBA]["L0"]))
    found[TOPK] = _twice(TopK(k=k), x, test, seed, settings, features)
    found[L1] = _twice(ReLU(l1=settings["l1"]), x, test, seed, settings, features)
    return found


def adaptation(
    settings: Mapping[str, Any], high: float, low: float, groups: int
) -> GroupBiasAdaptation:
    """Returns the bias adaptation with these targets; one group has the target `high`."""
    step = settings["gamma"]
    return GroupBiasAdaptation(
        groups=groups,
        high=high,
        low=low,
        buffer=max(settings["buffer"], round(11 / low)),
        step_down=step,
        step_up=step,
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
        sae, rate = gba_autoencoder(width, latents, activation, seed=seed), rates[GBA]
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
def facts(sae: SparseAutoencoder, test: Tensor, features: Tensor | None) -> dict[str, float]:
    """Returns fidelity and sparsity on the test, and the recovery of the true features."""
    sums, entries = ReconstructionSums(), 0
    for part in test.split(ROWS_AT_ONCE):
        inner, _ = sae.normalise_rows(part)
        code = sae.sparse_encode(part)
        sums.add(inner, sae.decode(code))
        entries += len(code.values)
    found = {
        "FVU": sums.fvu,
        "L0": entries / len(test),
        "alive share": float(alive(sae, test).double().mean()),
    }
    if features is not None:
        found[RECOVERY] = recovery_rate(sae.decoder_rows(), features)
    return found


@torch.no_grad()
def alive(sae: SparseAutoencoder, test: Tensor) -> Tensor:
    """Returns bool (d_sae,), the latents that fire in some row of the test."""
    fired = torch.zeros(sae.d_sae, dtype=torch.int64)
    for part in test.split(ROWS_AT_ONCE):
        fired += sae.sparse_encode(part).fired()
    return fired > 0


@torch.no_grad()
def agreement(runs: Sequence[SparseAutoencoder], test: Tensor) -> float:
    """Returns the share of latents that fire and are found again in the other training."""
    chosen = [alive(sae, test) for sae in runs]
    return feature_consistency([sae.decoder_rows() for sae in runs], chosen=chosen).share


def _twice(
    activation: GroupBiasAdaptation | TopK | ReLU,
    x: Tensor,
    test: Tensor,
    seed: int,
    settings: Mapping[str, Any],
    features: Tensor | None,
) -> dict[str, float]:
    runs = [trained(activation, x, derive(seed, "run", index), settings) for index in range(2)]
    return {**facts(runs[0], test, features), CONSISTENCY: agreement(runs, test)}
