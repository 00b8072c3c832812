"""Targeted probe perturbation: whether the latents of one concept can be taken out alone.

For each concept the k latents that tell it apart best are ablated in the reconstructions, and
linear probes of all concepts, trained on the activations, are asked again. A dictionary that
separates concepts hurts the probe of the ablated one and no other (Karvonen et al., 2024). The
score is how much accuracy the ablated concept loses, less what the others lose, mean over concepts.
Departure: the probes read reconstructions without an ablation for reference, so that what the
dictionary does not explain at all counts neither for nor against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue
from sparsecraft.domains.interpretability.directions import check_labels, contrast_latents
from sparsecraft.domains.interpretability.latent_amplitudes import amplitudes, directions
from sparsecraft.domains.interpretability.probing import Probe, linear_probe
from sparsecraft.model.sae import SparseAutoencoder


@dataclass(frozen=True)
class Perturbation:
    """Accuracies of every probe after every ablation.

    Args:
        concepts: Their names, in the order of rows and columns.
        latents: Concept to the latents ablated for it.
        before: (concepts,), accuracy of each concept's probe on reconstructions.
        after: (ablated concept, probed concept), accuracies.
    """

    concepts: tuple[str, ...]
    latents: dict[str, list[int]]
    before: Tensor
    after: Tensor

    @property
    def intended(self) -> float:
        """Mean accuracy that the ablated concept's own probe loses."""
        return float((self.before - self.after).diagonal().mean())

    @property
    def unintended(self) -> float:
        """Mean accuracy that the other probes lose."""
        lost = self.before - self.after
        others = ~torch.eye(len(self.concepts), dtype=torch.bool)
        return float(lost[others].mean())

    @property
    def score(self) -> float:
        """Intended less unintended: 0.5 is all of a balanced concept and nothing else."""
        return self.intended - self.unintended

    def rows(self) -> list[tuple[str, ...]]:
        """Returns the table: concept, latents, its own probe before and after, the others' mean."""
        count = len(self.concepts)
        return [
            (
                name,
                ", ".join(map(str, self.latents[name])),
                f"{float(self.before[i]):.3f}",
                f"{float(self.after[i, i]):.3f}",
                f"{float((self.after[i].sum() - self.after[i, i]) / (count - 1)):.3f}",
            )
            for i, name in enumerate(self.concepts)
        ]


@torch.no_grad()
def targeted_perturbation(
    sae: SparseAutoencoder,
    x: tuple[Tensor, Tensor],
    labels: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    k: int = 5,
) -> Perturbation:
    """Returns what ablating each concept's latents does to the probes of all concepts.

    Args:
        sae: The dictionary.
        x: Activations (rows, d) of training and test rows.
        labels: Concept to (rows,) labels 0 and 1, of both.
        k: Latents ablated for a concept, ranked by |difference of class means| on training rows.

    Raises:
        InvalidValue: For fewer than two concepts, labels that are not two classes, or a k that is
            not allowed.

    Reference:
        Karvonen et al., 2024, arXiv 2411.18895, section 4 (TPP).
    """
    concepts = tuple(labels[0])
    if len(concepts) < 2 or set(concepts) != set(labels[1]):
        raise InvalidValue(
            f"the concepts are {list(concepts)} and {list(labels[1])}: give the same, at least "
            "two, for training and test rows"
        )
    codes = (amplitudes(sae, x[0]), amplitudes(sae, x[1]))
    truth = {name: check_labels(x[1], labels[1][name]) for name in concepts}
    probes, latents = {}, {}
    for name in concepts:
        y = check_labels(x[0], labels[0][name])
        probes[name] = linear_probe(x[0], y)
        latents[name] = contrast_latents(codes[0][y], codes[0][~y], top=k).latents
    whole, d = sae(x[1]), directions(sae)
    after = [
        _accuracies(probes, whole - codes[1][:, latents[name]] @ d[latents[name]], truth)
        for name in concepts
    ]
    return Perturbation(
        concepts,
        {name: found.tolist() for name, found in latents.items()},
        _accuracies(probes, whole, truth),
        torch.stack(after),
    )


def _accuracies(probes: Mapping[str, Probe], x: Tensor, truth: Mapping[str, Tensor]) -> Tensor:
    """Returns (concepts,), the share of rows that each concept's probe gets right."""
    found = [
        float((each.predict(x) == truth[name]).double().mean()) for name, each in probes.items()
    ]
    return torch.tensor(found, dtype=torch.float64)
