"""Whether a dictionary's reconstructions suffice, are needed, and let behaviour be controlled.

Three questions of Makelov et al. (2024), asked of any node of any model through a function from
the node's values to what the model says. The reference is always mean ablation. Tables of edits
always have their ceiling, the supervised dictionary, and their floor, no edit at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue
from sparsecraft.domains.interpretability.editing import Edit
from sparsecraft.domains.interpretability.nodes import Outputs

Metric = Callable[[Tensor], Tensor]
"""From (rows, classes) to (rows,)."""

CEILING, FLOOR = "supervised", "no edit"


@dataclass(frozen=True)
class Approximation:
    """What the model's metric is with the node's own values, and with other ones.

    Args:
        clean: Mean of the metric, nothing replaced.
        ablated: With the mean of all rows in place of each.
        reconstructed: With reconstructions.
        without_reconstruction: With the mean plus what the reconstruction leaves over.
    """

    clean: float
    ablated: float
    reconstructed: float
    without_reconstruction: float

    @property
    def sufficiency(self) -> float:
        """|reconstructed - ablated| / |clean - ablated|; 1 is perfect, and nothing is clipped."""
        return abs(self.reconstructed - self.ablated) / abs(self.clean - self.ablated)

    @property
    def necessity(self) -> float:
        """What is lost without the reconstruction, over what mean ablation loses; 1 is perfect.

        Near 1 nothing that the model needs is left in the error.
        """
        return (self.clean - self.without_reconstruction) / (self.clean - self.ablated)


def evaluate_approximation(
    outputs: Outputs, metric: Metric, x: Tensor, reconstruction: Tensor, mean: Tensor | None = None
) -> Approximation:
    """Returns whether reconstructions can stand for the activations of a node.

    Args:
        outputs: From the node's values to what the model says (`nodes.outputs`).
        metric: From that to one number a row, such as `logit_difference`.
        x: (rows, d), the node's own activations.
        reconstruction: (rows, d).
        mean: (d,), of the data; by default of these rows.

    Raises:
        InvalidValue: If shapes differ, or mean ablation changes nothing, so that there is nothing
            to recover.

    Reference:
        Makelov et al., 2024, arXiv 2405.08366, section 4, sufficiency and necessity.
    """
    if x.shape != reconstruction.shape:
        raise InvalidValue(
            f"activations {tuple(x.shape)} and reconstructions {tuple(reconstruction.shape)} must "
            "be of one shape"
        )
    mean = x.mean(0) if mean is None else mean
    found = Approximation(
        clean=_mean(metric, outputs(None)),
        ablated=_mean(metric, outputs(mean.expand_as(x))),
        reconstructed=_mean(metric, outputs(reconstruction)),
        without_reconstruction=_mean(metric, outputs(mean + (x - reconstruction))),
    )
    if abs(found.clean - found.ablated) <= 1e-6 * max(1.0, abs(found.clean)):
        raise InvalidValue(
            f"mean ablation leaves the metric at {found.ablated:.6g}, where it is without it: the "
            "model does not use this node for it, so nothing can be recovered. Take another node "
            "or metric."
        )
    return found


def logit_difference(right: Tensor, wrong: Tensor) -> Metric:
    """Returns the metric logit(right) - logit(wrong), for int64 (rows,) classes."""

    def metric(logits: Tensor) -> Tensor:
        rows = torch.arange(len(logits))
        return logits[rows, right] - logits[rows, wrong]

    return metric


@dataclass(frozen=True)
class EditScore:
    """How well an edit controls the model.

    Args:
        name: Of the edit.
        changed: Latents whose amplitude the edit changes in a row, on average: those taken out and
            those put in together; fewer than asked for where fewer are active. nan for the
            ceiling and the floor, which change none.
        agreement: Share of rows in which the model says the same as with the changed prompt's own
            activations put in.
        rescaled: The agreement from 0 at the floor to 1 at the ceiling; nan if they are equal.
        weight: Mean share of the reconstruction that was taken out.
        distance: Mean of ||x_changed - edited||.
        attribution: Mean of the summed |(x_changed - edited) * gradient|, nan without gradients.
    """

    name: str
    changed: float
    agreement: float
    rescaled: float
    weight: float
    distance: float
    attribution: float


@dataclass(frozen=True)
class EditTable:
    """The scores of edits, first the ceiling, last the floor."""

    scores: tuple[EditScore, ...]

    def __getitem__(self, name: str) -> EditScore:
        return next(score for score in self.scores if score.name == name)

    def rows(self) -> list[tuple[str, ...]]:
        """Returns the table as text: name, latents, agreement, rescaled, weight, distance."""
        return [
            (
                score.name,
                "-" if score.changed != score.changed else f"{score.changed:.3g}",
                f"{score.agreement:.3f}",
                f"{score.rescaled:.3f}",
                f"{score.weight:.3f}",
                f"{score.distance:.4g}",
            )
            for score in self.scores
        ]

    def to_json(self) -> list[dict[str, Any]]:
        """Returns it as plain values."""
        return [asdict(score) for score in self.scores]


def compare_edits(
    outputs: Outputs,
    x: Tensor,
    x_changed: Tensor,
    supervised: tuple[Tensor, Tensor],
    edits: Mapping[str, Edit],
    *,
    gradient: Tensor | None = None,
) -> EditTable:
    """Returns how far each edit makes the model say what the changed prompt makes it say.

    Args:
        outputs: From the node's values to what the model says, on the unchanged prompts.
        x: (rows, d), their activations.
        x_changed: (rows, d), those of the changed prompts.
        supervised: (rows, d) edited by a supervised dictionary, the ceiling, and (rows,) the weight
            of the codes that were taken out.
        edits: Name to edit.
        gradient: (rows, d) of a metric with respect to x, for the attribution distance.
    """
    said = outputs(x_changed).argmax(1)
    nothing = Edit(x, _no_latents(x), _no_latents(x), x.new_zeros(len(x)))
    ceiling = Edit(supervised[0], _no_latents(x), _no_latents(x), supervised[1])
    every = {CEILING: ceiling, **edits, FLOOR: nothing}
    agreements = {
        name: float((outputs(edit.edited).argmax(1) == said).double().mean())
        for name, edit in every.items()
    }
    low, high = agreements[FLOOR], agreements[CEILING]
    return EditTable(
        tuple(
            EditScore(
                name=name,
                changed=_changed(edit),
                agreement=agreements[name],
                rescaled=(agreements[name] - low) / (high - low) if high != low else float("nan"),
                weight=float(edit.weight.double().mean()),
                distance=float((x_changed - edit.edited).norm(dim=1).double().mean()),
                attribution=_attribution(x_changed - edit.edited, gradient),
            )
            for name, edit in every.items()
        )
    )


def agreement_at_weight(scores: Sequence[EditScore], floor: EditScore, weight: float) -> float:
    """Returns the agreement that edits of growing size reach when this much weight is taken out.

    Between two sizes it is interpolated; beyond the largest it is that of the largest.

    Args:
        scores: Of edits of one kind, by size ascending.
        floor: Of no edit.
        weight: For example what the supervised edit takes out.
    """
    before = floor
    for score in scores:
        if score.weight >= weight and score.weight > before.weight:
            share = (weight - before.weight) / (score.weight - before.weight)
            return before.agreement + share * (score.agreement - before.agreement)
        if score.weight > before.weight:
            before = score
    return scores[-1].agreement if scores else floor.agreement


def _changed(edit: Edit) -> float:
    if not edit.removed.shape[1]:
        return float("nan")
    if edit.changed is not None:
        return float(edit.changed.double().mean())
    together = edit.removed is edit.added
    return float(edit.removed.shape[1] * (1 if together else 2))


def _no_latents(x: Tensor) -> Tensor:
    return torch.empty(len(x), 0, dtype=torch.int64)


def _attribution(difference: Tensor, gradient: Tensor | None) -> float:
    if gradient is None:
        return float("nan")
    return float((difference * gradient).abs().sum(1).double().mean())


def _mean(metric: Metric, logits: Tensor) -> float:
    return float(metric(logits).double().mean())
