"""k-sparse probes: how much of a labelled concept k latents know.

Latents are ranked on the training rows by |difference of class means|, and a logistic regression on
the k best is fitted. Features are the codes themselves with their signs: a probe on `code > 0`
would drop half of a signed code. Baselines are a probe on all entries of the activations, and the
difference in means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsecraft.core.errors import InvalidValue
from sparsecraft.domains.interpretability.directions import (
    DifferenceInMeans,
    check_labels,
    contrast_latents,
)

PENALTY = 1e-2
ITERATIONS = 100


@dataclass(frozen=True)
class Probe:
    """A logistic regression on some latents.

    Args:
        latents: int64 (k,), which; best first.
        weight: (k,), of the standardised values.
        bias: One number.
        mean: (k,), of the training rows.
        deviation: (k,).
    """

    latents: Tensor
    weight: Tensor
    bias: Tensor
    mean: Tensor
    deviation: Tensor

    def logits(self, z: Tensor) -> Tensor:
        """Returns (rows,), positive where the concept is said to be there."""
        values = (z[:, self.latents].double() - self.mean) / self.deviation
        return values @ self.weight + self.bias

    def predict(self, z: Tensor) -> Tensor:
        """Returns bool (rows,)."""
        return self.logits(z) > 0

    def accuracy(self, z: Tensor, y: Tensor) -> float:
        """Returns the share of rows with the right label."""
        return float((self.predict(z) == check_labels(z, y)).double().mean())


def sparse_probe(z: Tensor, y: Tensor, k: int) -> Probe:
    """Returns a probe on the k latents whose class means differ most.

    Args:
        z: (rows, d_sae) codes, or activations.
        y: (rows,), 0 and 1.
        k: How many latents.

    Raises:
        InvalidValue: If labels are not two classes, lengths differ, or k is not allowed.

    Example:
        >>> z = torch.tensor([[0.0, 1.0], [0.0, -1.0], [2.0, 1.0], [3.0, -1.0]])
        >>> probe = sparse_probe(z, torch.tensor([0, 0, 1, 1]), k=1)
        >>> probe.latents.tolist(), probe.predict(z).tolist()
        ([0], [False, False, True, True])

    Reference:
        Gurnee et al., 2023, arXiv 2305.01610, section 3.
    """
    labels = check_labels(z, y)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= z.shape[1]:
        raise InvalidValue(f"k={k!r} is not allowed: give 1 to {z.shape[1]}, the latents")
    latents = contrast_latents(z[labels], z[~labels], top=k).latents
    return _fitted(z, labels, latents)


def linear_probe(x: Tensor, y: Tensor) -> Probe:
    """Returns a probe on all entries of activations (rows, d).

    Raises:
        InvalidValue: If labels are not two classes, or lengths differ.
    """
    return _fitted(x, check_labels(x, y), torch.arange(x.shape[1]))


@dataclass(frozen=True)
class Probing:
    """Accuracies on test rows.

    Args:
        majority: Of always naming the larger class: the floor.
        sparse: k to the accuracy of the k-sparse probe on codes.
        dense: Of a probe on all entries of the activations.
        difference_in_means: Of the direction between class means in the activations.
        latents: k to the latents of its probe.
    """

    majority: float
    sparse: dict[int, float]
    dense: float
    difference_in_means: float
    latents: dict[int, list[int]]

    def rows(self) -> list[tuple[str, str]]:
        """Returns the table: probe, accuracy."""
        return [
            ("larger class", f"{self.majority:.3f}"),
            *((_latents(k), f"{value:.3f}") for k, value in self.sparse.items()),
            ("difference in means", f"{self.difference_in_means:.3f}"),
            ("all entries", f"{self.dense:.3f}"),
        ]


def probe(
    z: tuple[Tensor, Tensor],
    x: tuple[Tensor, Tensor],
    y: tuple[Tensor, Tensor],
    ks: Sequence[int] = (1, 2, 5),
) -> Probing:
    """Returns how well a concept is read from few latents, and from the activations.

    Args:
        z: Codes of the training and the test rows.
        x: Their activations.
        y: Their labels, 0 and 1.
        ks: Numbers of latents.

    Raises:
        InvalidValue: As `sparse_probe`.
    """
    probes = {k: sparse_probe(z[0], y[0], k) for k in ks}
    labels, tested = check_labels(x[0], y[0]), check_labels(x[1], y[1])
    everything = linear_probe(x[0], y[0])
    means = DifferenceInMeans().fit(x[0], y[0])
    larger = bool(labels.double().mean() >= 0.5)
    return Probing(
        majority=float((tested == larger).double().mean()),
        sparse={k: found.accuracy(z[1], y[1]) for k, found in probes.items()},
        dense=everything.accuracy(x[1], y[1]),
        difference_in_means=float((means.predict(x[1]) == tested).double().mean()),
        latents={k: found.latents.tolist() for k, found in probes.items()},
    )


def _fitted(z: Tensor, labels: Tensor, latents: Tensor) -> Probe:
    """Returns the logistic regression with a small ridge, fitted by L-BFGS in float64."""
    values = z[:, latents].detach().double()
    mean = values.mean(0)
    deviation = values.std(0, correction=0).clamp_min(1e-12)
    inputs, targets = (values - mean) / deviation, labels.double()
    weight = torch.zeros(len(latents), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe", tolerance_grad=1e-7
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(inputs @ weight + bias, targets)
        loss = loss + PENALTY / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return Probe(latents, weight.detach(), bias.detach(), mean, deviation)


def _latents(k: int) -> str:
    return f"{k} latent" if k == 1 else f"{k} latents"
