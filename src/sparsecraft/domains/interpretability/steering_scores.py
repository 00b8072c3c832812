"""Steering measured: what a direction does to a concept, against what it does to everything else.

A direction is added to a model's activations in growing strength. On prompts the effect on the
concept is measured; on other text the cost, which is how far the model's predictions move. The
best latent of a dictionary and the difference in means of a labelled set, the supervised baseline
that latents are to be compared with (Zhu et al., 2025), are measured alike. Directions are brought
to one length, so that strengths mean the same; random directions are the floor. Since one direction
may do more at a higher cost, effects are to be compared at equal cost (`effect_at`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecraft.core import seeds
from sparsecraft.core.errors import InvalidValue
from sparsecraft.domains.interpretability.directions import (
    DifferenceInMeans,
    check_labels,
    contrast_latents,
)
from sparsecraft.domains.interpretability.latent_amplitudes import amplitudes
from sparsecraft.domains.interpretability.nodes import Inputs, Logits, batches, call, run
from sparsecraft.domains.interpretability.steering import latent_direction, steering
from sparsecraft.model.hook_points import hook_point
from sparsecraft.model.sae import SparseAutoencoder

FLOOR = "random"
STRENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0)

Direction = Tensor | DifferenceInMeans


@dataclass(frozen=True)
class ConceptLatent:
    """The latent that tells a concept best.

    Args:
        latent: Which.
        direction: (d,), its decoder row, turned so that adding it brings the concept.
    """

    latent: int
    direction: Tensor


def concept_latent(sae: SparseAutoencoder, x: Tensor, y: Tensor) -> ConceptLatent:
    """Returns the latent whose mean differs most between rows with and without a concept.

    Args:
        sae: The dictionary.
        x: (rows, d) labelled activations.
        y: (rows,), true or 1 where the concept is there.

    Raises:
        InvalidValue: If lengths differ, or labels are not two classes.
    """
    labels = check_labels(x, y)
    z = amplitudes(sae, x)
    best = contrast_latents(z[labels], z[~labels])
    latent = int(best.latents[0])
    return ConceptLatent(latent, best.difference[0].sign() * latent_direction(sae, latent))


@dataclass(frozen=True)
class SteeringPoint:
    """A direction at one strength.

    Args:
        name: Of the direction.
        strength: Length of what is added, in mean norms of the activations.
        effect: Mean over prompts of what is measured, less that without steering.
        cost: KL from the clean predictions on other text, in nats a prediction.
    """

    name: str
    strength: float
    effect: float
    cost: float


@dataclass(frozen=True)
class SteeringScores:
    """All directions at all strengths; those of the floor are means over several directions.

    Args:
        points: By direction, strengths ascending; the floor comes last.
        clean: What is measured on the prompts without steering.
        norm: Mean norm of the activations: a strength of 1.
    """

    points: tuple[SteeringPoint, ...]
    clean: float
    norm: float

    def effect_at(self, name: str, cost: float) -> float:
        """Returns the largest effect that a direction has at no more than this cost.

        Between two strengths effect and cost are interpolated, from no effect at no cost on.

        Raises:
            InvalidValue: If there is no such direction, or the cost is negative.
        """
        own = [point for point in self.points if point.name == name]
        if not own or cost < 0:
            names = ", ".join(dict.fromkeys(point.name for point in self.points))
            raise InvalidValue(f"effect_at({name!r}, {cost}): give one of {names}, and a cost >= 0")
        best, before = 0.0, (0.0, 0.0)
        for point in own:
            here = (point.cost, point.effect)
            if here[0] <= cost:
                best = max(best, here[1])
            elif before[0] < cost:
                share = (cost - before[0]) / (here[0] - before[0])
                best = max(best, before[1] + share * (here[1] - before[1]))
            before = here
        return best

    def rows(self) -> list[tuple[str, ...]]:
        """Returns the table: direction, strength, effect, cost."""
        return [
            (each.name, f"{each.strength:g}", f"{each.effect:+.4f}", f"{each.cost:.4f}")
            for each in self.points
        ]

    def to_json(self) -> dict[str, Any]:
        """Returns everything as plain values."""
        return asdict(self)


def steering_scores(
    model: nn.Module,
    at: str,
    directions: Mapping[str, Direction],
    prompts: Inputs,
    other: Inputs,
    effect: Callable[[Tensor], Tensor],
    *,
    strengths: Sequence[float] = STRENGTHS,
    random_directions: int = 3,
    logits: Logits | None = None,
    batch: int = 512,
    seed: int = 0,
) -> SteeringScores:
    """Returns effect and cost of steering along directions, and along random ones.

    Args:
        model: Any module; its mode is left as it is.
        at: Hook point; what is added is added at every token.
        directions: Name to (d,), such as `concept_latent(sae, x, y).direction`, or to a fitted
            `DifferenceInMeans`. Their lengths do not count, their signs do.
        prompts: On which the effect is measured.
        other: Text on whose predictions, at every token that an `attention_mask` does not leave
            out, the cost is measured. It should not be about the concept.
        effect: From logits (rows, classes) to (rows,), such as `probability_of(tokens)`.
        strengths: How much is added, in mean norms of the activations on the prompts.
        random_directions: How many make the floor.
        logits: Of the prompts, as in `nodes.run`: by default those of the last token.
        batch: Prompts in a forward pass.
        seed: Of the random directions.

    Raises:
        InvalidValue: If there is no direction, one is zero or called "random", or a number is not
            allowed.
        UnknownName: If there is no such hook point.

    Reference:
        The baseline: Zhu et al., 2025, arXiv 2510.00404, section 5.
    """
    _check(directions, strengths, random_directions)
    norm, width = _activation_norm(model, at, prompts, batch)
    draw = seeds.generator(seed, "steering", "random directions")
    unit = {name: _unit(name, each) for name, each in directions.items()}
    floor = [torch.randn(width, generator=draw) for _ in range(random_directions)]
    bench = _Bench(model, at, prompts, other, effect, logits, batch)
    clean = bench.measured()
    points = [
        SteeringPoint(name, strength, *bench.point(direction, strength * norm, clean))
        for name, direction in unit.items()
        for strength in sorted(strengths)
    ]
    for strength in sorted(strengths):
        found = [bench.point(_unit(FLOOR, each), strength * norm, clean) for each in floor]
        effects, costs = (sum(values) / len(found) for values in zip(*found, strict=True))
        points.append(SteeringPoint(FLOOR, strength, effects, costs))
    return SteeringScores(tuple(points), clean, norm)


def probability_of(tokens: Tensor | Sequence[int]) -> Callable[[Tensor], Tensor]:
    """Returns the effect "probability of any of these tokens", from logits (rows, classes).

    Example:
        >>> probability_of([0, 1])(torch.zeros(1, 4)).tolist()
        [0.5]
    """
    chosen = torch.as_tensor(tokens)
    return lambda logits: logits.float().softmax(-1)[:, chosen.to(logits.device)].sum(1)


@dataclass(frozen=True)
class _Bench:
    """What is measured with one direction added."""

    model: nn.Module
    at: str
    prompts: Inputs
    other: Inputs
    effect: Callable[[Tensor], Tensor]
    logits: Logits | None
    batch: int

    def point(self, unit: Tensor, length: float, clean: float) -> tuple[float, float]:
        """Returns the effect and the cost of adding so much of a unit vector."""
        with steering(self.model, self.at, unit, length):
            steered = self.measured()
        return steered - clean, self._divergence(unit, length)

    def measured(self) -> float:
        """Returns the mean over the prompts of what is measured."""
        said = run(self.model, self.prompts, logits=self.logits, batch=self.batch)
        return float(self.effect(said).double().mean())

    @torch.no_grad()
    def _divergence(self, unit: Tensor, length: float) -> float:
        total, counted = 0.0, 0
        for _, part in batches(self.other, self.batch):
            clean = _log_predictions(call(self.model, part), part)
            with steering(self.model, self.at, unit, length):
                steered = _log_predictions(call(self.model, part), part)
            total += float(F.kl_div(steered, clean, log_target=True, reduction="sum").double())
            counted += len(clean)
        return total / max(1, counted)


def _log_predictions(output: Any, inputs: Inputs) -> Tensor:
    """Returns (predictions, classes) log probabilities, of every token that is not padding."""
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.dim() not in (2, 3):
        raise InvalidValue(
            f"the model returns {type(output).__name__}, which has no logits: the cost of steering "
            "is measured in its predictions"
        )
    mask = None if isinstance(inputs, Tensor) else inputs.get("attention_mask")
    if logits.dim() == 3:
        logits = logits.flatten(0, 1) if mask is None else logits[mask.to(logits.device).bool()]
    return logits.float().log_softmax(-1)


@torch.no_grad()
def _activation_norm(model: nn.Module, at: str, inputs: Inputs, batch: int) -> tuple[float, int]:
    """Returns the mean norm of the activations at a hook point, and their width."""
    norms: list[Tensor] = []
    widths: list[int] = []

    def look(hidden: Tensor) -> None:
        norms.append(hidden.detach().double().norm(dim=-1).flatten())
        widths.append(hidden.shape[-1])

    handle = hook_point(model, at).watch(look)
    try:
        for _, part in batches(inputs, batch):
            call(model, part)
    finally:
        handle.remove()
    return float(torch.cat(norms).mean()), widths[0]


def _unit(name: str, direction: Direction) -> Tensor:
    vector = direction.direction if isinstance(direction, DifferenceInMeans) else direction
    norm = float(vector.norm())
    if not 0 < norm < math.inf:
        raise InvalidValue(f"direction {name!r} has a norm of {norm}, so nothing lies along it")
    return vector.detach() / norm


def _check(directions: Mapping[str, Any], strengths: Sequence[float], count: int) -> None:
    if not directions or FLOOR in directions:
        raise InvalidValue(
            f"directions {list(directions)} were given: give at least one, and none that is called "
            f"{FLOOR!r}, as the floor is"
        )
    if not strengths or not all(0 < each < math.inf for each in strengths):
        raise InvalidValue(
            f"strengths={tuple(strengths)} are not allowed: give numbers above 0; for the other "
            "pole give the direction's negative"
        )
    if count < 1:
        raise InvalidValue(f"random_directions={count} is not allowed: the floor needs at least 1")
