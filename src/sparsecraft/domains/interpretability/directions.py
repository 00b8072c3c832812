"""Directions of concepts from labelled activations, and latents that tell two sets apart.

Difference in means is the supervised baseline that a dictionary's latents are to be compared with:
one labelled set gives one direction. A signed latent may hold both poles of a concept (AbsTopK,
Zhu et al., 2025), so contrasts rank by the size of the difference of means, never by `code > 0`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue, NonFinite


class DifferenceInMeans:
    """The direction from the mean of what lacks a concept to the mean of what has it.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [0.0, 3.0], [4.0, 1.0], [4.0, 3.0]])
        >>> found = DifferenceInMeans().fit(x, torch.tensor([0, 0, 1, 1]))
        >>> found.direction.tolist(), found.predict(x).tolist()
        ([4.0, 0.0], [False, False, True, True])

    Reference:
        Zhu et al., 2025, arXiv 2510.00404, section 5 (steering); Marks, Tegmark, 2023, arXiv
        2310.06824.
    """

    def __init__(self) -> None:
        self.direction: Tensor = torch.zeros(0)
        """(d,), mean with the concept less mean without it."""
        self.threshold = 0.0
        """The projection halfway between the means."""

    def fit(self, x: Tensor, y: Tensor) -> DifferenceInMeans:
        """Finds the direction, and returns self.

        Args:
            x: (..., d), all examples and token positions alike.
            y: (...,), true or 1 where the concept is there.

        Raises:
            InvalidValue: If lengths differ, labels are not two classes, or the means are equal.
            NonFinite: If an activation is NaN or infinite.
        """
        rows, labels = x.reshape(-1, x.shape[-1]), check_labels(x, y)
        if not bool(torch.isfinite(rows).all()):
            raise NonFinite("activations hold NaN or infinite values: leave those rows out")
        high, low = rows[labels].double().mean(0), rows[~labels].double().mean(0)
        self.direction = (high - low).to(x.dtype)
        if not bool(self.direction.any()):
            raise InvalidValue("both classes have the same mean, so there is no direction")
        self.threshold = float(((high + low) / 2) @ (high - low))
        return self

    def predict(self, x: Tensor) -> Tensor:
        """Returns bool (...,), whether each activation lies on the side of the concept."""
        self._check_fitted()
        return x @ self.direction > self.threshold

    def steer(self, x: Tensor, alpha: float = 1.0) -> Tensor:
        """Returns x + alpha * direction; a negative alpha steers away from the concept."""
        self._check_fitted()
        return x + alpha * self.direction

    def ablate(self, x: Tensor) -> Tensor:
        """Returns x without what lies along the direction."""
        self._check_fitted()
        unit = self.direction / self.direction.norm()
        return x - (x @ unit)[..., None] * unit

    def _check_fitted(self) -> None:
        if not self.direction.numel():
            raise InvalidValue("there is no direction yet: call fit(x, y) first")


def check_labels(x: Tensor, y: Tensor) -> Tensor:
    """Returns bool (rows,) labels of activations (..., d).

    Raises:
        InvalidValue: If lengths differ, or the labels are not two classes.
    """
    labels = torch.as_tensor(y).reshape(-1)
    if len(labels) != x[..., 0].numel():
        raise InvalidValue(
            f"{len(labels)} labels for {x[..., 0].numel()} activations: give one for each"
        )
    classes = labels.unique().tolist()
    if len(classes) != 2 or not all(value in (0, 1) for value in classes):
        raise InvalidValue(
            f"the labels are {classes[:5]}: two classes are needed, 0 and 1 (false and true), and "
            "examples of both"
        )
    return labels.bool()


@dataclass(frozen=True)
class Contrast:
    """Latents that tell two sets of codes apart, best first.

    Args:
        latents: int64 (top,).
        difference: (top,), mean over A less mean over B; its sign says which pole A is.
    """

    latents: Tensor
    difference: Tensor


def contrast_latents(z_a: Tensor, z_b: Tensor, top: int = 1) -> Contrast:
    """Returns the latents with the largest |mean over A - mean over B|.

    Args:
        z_a: (rows, d_sae), codes with the one concept.
        z_b: (rows, d_sae), codes with the other.
        top: How many.

    Raises:
        InvalidValue: If a set is empty, widths differ, or `top` is not allowed.

    Example:
        >>> a, b = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[-2.0, 1.0, 1.0]])
        >>> contrast_latents(a, b).latents.tolist(), contrast_latents(a, b).difference.tolist()
        ([0], [4.0])
    """
    _check_codes(z_a, z_b)
    if not 1 <= top <= z_a.shape[1]:
        raise InvalidValue(f"top={top} is not allowed: give 1 to {z_a.shape[1]}, the latents")
    difference = z_a.double().mean(0) - z_b.double().mean(0)
    order = difference.abs().argsort(descending=True, stable=True)[:top]
    return Contrast(order, difference[order].to(z_a.dtype))


@dataclass(frozen=True)
class Bipolarity:
    """Whether one latent encodes two contrasting concepts.

    Args:
        latent: The best single latent.
        one: How well it separates the two sets: the area under its ROC curve.
        pair: The best pair's, one latent for each pole, scored by the difference of the two.
        partners: The pair: the latent for A, the latent for B.
        poles: (share of A, share of B) in which the single latent has the sign of its mean over
            that set, and the two signs are opposite; (0, 0) if they are not.
    """

    latent: int
    one: float
    pair: float
    partners: tuple[int, int]
    poles: tuple[float, float]

    @property
    def score(self) -> float:
        """(one - 1/2) / (pair - 1/2), at most 1, times the smaller share of `poles`.

        1: one latent does alone what a pair can do, and is active with opposite signs on the two
        sides. 0: for codes without signs always, or if the latent tells nothing.
        """
        if self.pair <= 0.5:
            return 0.0
        return min(max(self.one - 0.5, 0.0) / (self.pair - 0.5), 1.0) * min(self.poles)


def bipolarity(
    z_a: Tensor, z_b: Tensor, held_out: tuple[Tensor, Tensor] | None = None, candidates: int = 8
) -> Bipolarity:
    """Returns whether one latent encodes both of two contrasting concepts.

    The latents are chosen by the difference of means, and scored on other rows if there are any.

    Args:
        z_a: (rows, d_sae), codes with the one concept.
        z_b: (rows, d_sae), codes with the other.
        held_out: The same of other rows, for the scores; else the scores are on the same.
        candidates: Latents of each pole from which the pair is chosen, by the largest area.

    Raises:
        InvalidValue: As `contrast_latents`.

    Example:
        >>> a, b = torch.tensor([[1.0], [2.0]]), torch.tensor([[-1.0], [-3.0]])
        >>> bipolarity(torch.cat([a, 0 * a], 1), torch.cat([b, 0 * b], 1)).score
        1.0

    Reference:
        Ours, for the claim of Zhu et al., 2025, arXiv 2510.00404, section 5.
    """
    _check_codes(z_a, z_b)
    best = contrast_latents(z_a, z_b)
    latent, sign = int(best.latents[0]), float(best.difference[0].sign())
    difference = z_a.double().mean(0) - z_b.double().mean(0)
    count = min(candidates, len(difference))
    up, down = difference.topk(count).indices, (-difference).topk(count).indices
    pairs = [(i, j) for i in up.tolist() for j in down.tolist() if i != j] or [(latent, latent)]
    partners = max(pairs, key=lambda ij: auc(z_a[:, ij[0]] - z_a[:, ij[1]],
                                             z_b[:, ij[0]] - z_b[:, ij[1]]))  # fmt: skip
    a, b = (z_a, z_b) if held_out is None else held_out
    i, j = partners
    pair = auc(a[:, i] - a[:, j], b[:, i] - b[:, j])
    one = auc(sign * a[:, latent], sign * b[:, latent])
    # The single latent is one of the readings of a pair: its partner silent.
    return Bipolarity(latent, one, max(pair, one), partners, _poles(z_a, z_b, a, b, latent))


def auc(a: Tensor, b: Tensor) -> float:
    """Returns the probability that a value of a is above one of b, ties counted half."""
    values = torch.cat([a, b]).double()
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    ranks = (ends - (counts.double() - 1) / 2)[place]
    above = ranks[: len(a)].sum() - len(a) * (len(a) + 1) / 2
    return float(above / (len(a) * len(b)))


def _poles(z_a: Tensor, z_b: Tensor, a: Tensor, b: Tensor, latent: int) -> tuple[float, float]:
    mean_a, mean_b = float(z_a[:, latent].mean()), float(z_b[:, latent].mean())
    if mean_a * mean_b >= 0:
        return 0.0, 0.0
    share_a = float((a[:, latent] * mean_a > 0).double().mean())
    share_b = float((b[:, latent] * mean_b > 0).double().mean())
    return share_a, share_b


def _check_codes(z_a: Tensor, z_b: Tensor) -> None:
    if z_a.dim() != 2 or z_b.dim() != 2 or z_a.shape[1] != z_b.shape[1]:
        raise InvalidValue(
            f"codes of shapes {tuple(z_a.shape)} and {tuple(z_b.shape)} cannot be contrasted: "
            "give (rows, d_sae) twice"
        )
    if not len(z_a) or not len(z_b):
        raise InvalidValue("a set of codes is empty: give at least one row with each concept")
