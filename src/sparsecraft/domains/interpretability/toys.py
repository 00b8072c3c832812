"""Two ways in which autoencoders go wrong, on data whose truth is known.

Occlusion: of two attributes that matter alike, the one that is larger in the activations is
learnt and the smaller is not. Over-splitting: an attribute with two values becomes many latents
that each cover a few rows, although two would do. Both are Makelov et al.'s (2024, section 6);
sizes are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.kinds import Activation
from sparsecraft.core.seeds import generator
from sparsecraft.domains.interpretability.feature_scores import feature_f1, value_masks
from sparsecraft.domains.interpretability.latent_amplitudes import amplitudes
from sparsecraft.methods.codes.relu import ReLU
from sparsecraft.model.sae import SparseAutoencoder
from sparsecraft.model.sae.training_settings import SAETraining

WIDTH, VALUES, ROWS = 32, 12, 4096
CLUSTER_WIDTH, NOISE = 8, 0.3


@dataclass(frozen=True)
class Attributed:
    """Activations with known attributes.

    Args:
        x: (rows, d).
        attributes: Name to int64 (rows,).
        values: Name to how many values it has.
    """

    x: Tensor
    attributes: dict[str, Tensor]
    values: dict[str, int]


def two_attributes(ratio: float, seed: int, rows: int = ROWS) -> Attributed:
    """Returns x = ratio v_strong(a) + v_weak(b), with random unit vectors for 12 values each.

    Args:
        ratio: Norm of the strong attribute's vectors over the weak one's, at least 1.
        seed: Of vectors and values.
        rows: How many.

    Raises:
        InvalidValue: For a ratio below 1.
    """
    if ratio < 1:
        raise InvalidValue(f"ratio={ratio} is not allowed: give a number of at least 1")
    draw = generator(seed, "occlusion")
    strong, weak = (_unit(torch.randn(VALUES, WIDTH, generator=draw)) for _ in range(2))
    a, b = (torch.randint(VALUES, (rows,), generator=draw) for _ in range(2))
    sizes = {"strong": VALUES, "weak": VALUES}
    return Attributed(ratio * strong[a] + weak[b], {"strong": a, "weak": b}, sizes)


def two_clusters(seed: int, rows: int = ROWS) -> Attributed:
    """Returns a mixture of two round clusters in few dimensions: one attribute with two values.

    Args:
        seed: Of the centres and the noise.
        rows: How many.
    """
    draw = generator(seed, "over-splitting")
    centre = _unit(torch.randn(1, CLUSTER_WIDTH, generator=draw))
    side = torch.randint(2, (rows,), generator=draw)
    noise = NOISE * torch.randn(rows, CLUSTER_WIDTH, generator=draw)
    return Attributed((2.0 * side - 1)[:, None] * centre + noise, {"side": side}, {"side": 2})


@dataclass(frozen=True)
class Found:
    """What a dictionary has of an attribute.

    Args:
        f1: Mean over its values of the best latent's F1.
        recall: Mean over its values of that latent's recall.
        latents: Mean over its values of how many latents fire on at least 1 % of its rows, and
            with a precision of at least 0.9.
    """

    f1: float
    recall: float
    latents: float


def found_of(sae: SparseAutoencoder, data: Attributed, name: str) -> Found:
    """Returns what an autoencoder has of an attribute."""
    active = amplitudes(sae, data.x) != 0
    scores = feature_f1(active, value_masks(data.attributes[name], data.values[name]))
    latents, f1 = scores.best()
    recall = scores.recall[latents, torch.arange(data.values[name])]
    precise = (scores.precision >= 0.9) & (scores.recall >= 0.01)
    return Found(float(f1.mean()), float(recall.mean()), float(precise.double().sum(0).mean()))


def dictionary_of(
    data: Attributed, activation: Activation, latents: int, seed: int, steps: int = 600
) -> SparseAutoencoder:
    """Returns an autoencoder trained on such data."""
    sae = SparseAutoencoder(data.x.shape[1], latents, activation, seed=seed)
    training = SAETraining(
        steps=steps, batch=512, learning_rate=3e-3, auxiliary=None, held_out=0.0, seed=seed
    )
    return sae.fit(data.x, training).eval()


def occlusion(
    ratio: float, seed: int, activation: Activation | None = None, steps: int = 400
) -> dict[str, Found]:
    """Returns what an autoencoder finds of a strong and of a weak attribute.

    It has as many latents as the two have values together, so both would find room.

    Args:
        ratio: Norm of the strong attribute's vectors over the weak one's.
        seed: Of the data and the autoencoder.
        activation: By default ReLU(l1=2).
        steps: Of the training.
    """
    data = two_attributes(ratio, seed)
    chosen = ReLU(l1=2.0) if activation is None else activation
    sae = dictionary_of(data, chosen, 2 * VALUES, seed, steps)
    return {name: found_of(sae, data, name) for name in data.attributes}


def over_splitting(
    latents: int, seed: int, activation: Activation | None = None, steps: int = 400
) -> Found:
    """Returns into how many latents a two-valued attribute falls, in a dictionary of this size.

    Args:
        latents: Of the autoencoder; 2 would do.
        seed: Of the data and the autoencoder.
        activation: By default ReLU(l1=0.3).
        steps: Of the training.
    """
    data = two_clusters(seed)
    chosen = ReLU(l1=0.3) if activation is None else activation
    return found_of(dictionary_of(data, chosen, latents, seed, steps), data, "side")


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=1, keepdim=True)
