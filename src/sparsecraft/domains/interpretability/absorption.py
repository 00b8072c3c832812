"""Feature absorption: latents for a general property that fall silent where a special latent fires.

A dictionary may have a latent for "begins with S" that does not fire on "snake", because a latent
for "snake" carries that direction too (Chanin et al., 2024). For each class a k-sparse probe finds
the latents that stand for it: k grows as long as the F1 gains enough. Absorbed are rows of the
class that a probe on the activations gets right, on which none of these latents fires, and on which
another latent whose direction resembles the probe's brings most of what the probe reads.

Departures: what a latent brings is its amplitude times its direction's product with the probe's
unit normal, exact for a linear probe, where the paper ablates one latent at a time; codes may be
signed. As in SAEBench "most" is a share of the activation's own projection on that normal, and
absorption is by one latent; partial absorption by several is not measured. A latent can stand for
a class only if it brings the probe's direction on its rows.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Any

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue
from sparsecraft.domains.interpretability.latent_amplitudes import amplitudes, directions
from sparsecraft.domains.interpretability.probing import Probe, linear_probe, sparse_probe
from sparsecraft.model.sae import SparseAutoencoder

FEW = 10
"""Rows of a class, in training and in test each, below which it is left out."""


@dataclass(frozen=True)
class ClassAbsorption:
    """One class.

    Args:
        value: The class, such as a letter.
        latents: That stand for it, best first.
        rows: Of the class in the test part that the probe on activations gets right.
        absorbed: Share of them that is absorbed.
        split: How many latents stand for it.
        f1: Of the probe on these latents, on the test part.
        absorbing: Latent to how many rows it absorbs.
    """

    value: Hashable
    latents: tuple[int, ...]
    rows: int
    absorbed: float
    split: int
    f1: float
    absorbing: dict[int, int]


@dataclass(frozen=True)
class Absorption:
    """All classes.

    Args:
        classes: Those with enough rows.
        left_out: Those without.
    """

    classes: tuple[ClassAbsorption, ...]
    left_out: tuple[Hashable, ...]

    @property
    def absorbed(self) -> float:
        """Mean share over the classes."""
        return sum(each.absorbed for each in self.classes) / len(self.classes)

    @property
    def split(self) -> float:
        """Mean number of latents that stand for a class."""
        return sum(each.split for each in self.classes) / len(self.classes)

    def rows(self) -> list[tuple[str, ...]]:
        """Returns the table: class, latents, F1, rows, share absorbed."""
        return [
            (
                str(each.value),
                ", ".join(map(str, each.latents)),
                f"{each.f1:.3f}",
                str(each.rows),
                f"{each.absorbed:.1%}",
            )
            for each in self.classes
        ]


def absorption(
    sae: SparseAutoencoder,
    x: tuple[Tensor, Tensor],
    classes: tuple[Sequence[Hashable | None], Sequence[Hashable | None]],
    *,
    most_latents: int = 5,
    jump: float = 0.03,
    alike: float = 0.025,
    share: float = 0.4,
) -> Absorption:
    """Returns how often latents of a class are silent where they should fire.

    Args:
        sae: The dictionary.
        x: Activations of training and test rows.
        classes: The class of each of those rows, such as `first_letters(words)`; None for a row of
            no class, which only serves as an example of what the others are not.
        most_latents: Latents that may stand for a class.
        jump: What another latent must add to the F1 to stand for the class too.
        alike: Cosine with the probe that an absorbing latent's direction has at least.
        share: Share of the activation's projection on the probe's normal that it must bring.

    Raises:
        InvalidValue: If lengths differ, or fewer than two classes have 10 rows in both parts.

    Reference:
        Chanin et al., 2024, arXiv 2409.14507, section 4; Karvonen et al., 2025, arXiv 2503.09532
        (F1 jump of 0.03, cosine of 0.025, share of 0.4).
    """
    for rows, labels in zip(x, classes, strict=True):
        if len(rows) != len(labels):
            raise InvalidValue(f"{len(labels)} classes for {len(rows)} activations: give one each")
    named = set(classes[0]) - {None}
    counted = {value: min(list(part).count(value) for part in classes) for value in named}
    kept = sorted((value for value, rows in counted.items() if rows >= FEW), key=str)
    if len(kept) < 2:
        raise InvalidValue(
            f"{len(kept)} classes have {FEW} rows in both parts: at least two are needed"
        )
    codes = (amplitudes(sae, x[0]), amplitudes(sae, x[1]))
    found = []
    for value in kept:
        y = tuple(torch.tensor([label == value for label in part]) for part in classes)
        read = linear_probe(x[0], y[0])
        # A latent for another class tells them apart too, but is not one for this class.
        bringing = codes[0][y[0]].mean(0) * _along(directions(sae), read) > 0
        chosen = _standing_for((codes[0] * bringing, codes[1] * bringing), y, most_latents, jump)
        found.append(
            _absorbed(value, codes[1], directions(sae), chosen, read, x[1], y[1], alike, share)
        )
    left_out = tuple(sorted(set(counted) - set(kept), key=str))
    return Absorption(tuple(found), left_out)


def first_letters(words: Sequence[str]) -> list[str | None]:
    """Returns the first letter of each word, lower case, None where it does not begin with one.

    Letters are a to z.

    Example:
        >>> first_letters([" Snake", "apple", "7up"])
        ['s', 'a', None]
    """
    letters = [word.strip()[:1].lower() for word in words]
    return [letter if letter and letter in ascii_lowercase else None for letter in letters]


def probe_f1(probe: Probe, z: Tensor, y: Tensor) -> float:
    """Returns the F1 of a probe on rows with labels bool (rows,)."""
    said = probe.predict(z)
    both = float((said & y).sum())
    total = float(said.sum() + y.sum())
    return 2 * both / total if total else 0.0


def _standing_for(
    codes: tuple[Tensor, Tensor], y: Any, most: int, jump: float
) -> tuple[Probe, float]:
    """Returns the probe on the latents of a class: k grows while the F1 gains enough."""
    best = sparse_probe(codes[0], y[0], 1)
    f1 = probe_f1(best, codes[0], y[0])
    for k in range(2, min(most, codes[0].shape[1]) + 1):
        wider = sparse_probe(codes[0], y[0], k)
        gained = probe_f1(wider, codes[0], y[0])
        if gained - f1 <= jump:
            break
        best, f1 = wider, gained
    return best, probe_f1(best, codes[1], y[1])


def _along(d: Tensor, read: Probe) -> Tensor:
    """Returns (rows,), how far each direction or activation goes along the probe's unit normal."""
    normal = (read.weight / read.deviation).to(d.dtype)
    return d @ (normal / normal.norm().clamp_min(1e-12))


def _absorbed(
    value: Hashable,
    code: Tensor,
    d: Tensor,
    chosen: tuple[Probe, float],
    read: Probe,
    x: Tensor,
    y: Tensor,
    alike: float,
    share: float,
) -> ClassAbsorption:
    latents = chosen[0].latents
    right = y & read.predict(x)
    along = _along(d, read)
    cosine = along / d.norm(dim=1).clamp_min(1e-12)
    brought = code[right] * along
    brought[:, latents] = 0.0
    silent = (code[right][:, latents] == 0).all(1)
    most = brought.max(1)
    # With codes of both signs a direction may point against the probe and still bring it.
    near = cosine[most.indices].abs() >= alike
    projection = _along(x[right], read)
    absorbed = silent & near & (projection >= 0) & (most.values >= share * projection)
    absorbed &= most.values > 0
    by_latent = torch.bincount(most.indices[absorbed], minlength=len(d))
    return ClassAbsorption(
        value,
        tuple(latents.tolist()),
        int(right.sum()),
        float(absorbed.double().mean()) if bool(right.any()) else 0.0,
        len(latents),
        chosen[1],
        {int(i): int(by_latent[i]) for i in by_latent.nonzero().flatten()},
    )
