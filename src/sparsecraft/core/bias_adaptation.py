"""Bias adaptation: a latent's bias falls while it fires too often, and rises if it never fires.

Chen et al. (2025) control sparsity by neither a penalty nor a selection. The latents are divided
into groups, each with a target activation frequency (TAF) of its own, geometric from high to low,
so that every frequency with which a feature occurs has a group in resonance with it. Over a buffer
of rows the frequency and the largest pre-activation of each latent are counted; then the biases
move, and the counters begin anew. Running counters give exactly what a buffer of stored values
would.

A controller for any encoder with a bias: `observe` each batch, then `update`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecraft.core import seeds
from sparsecraft.core.errors import InvalidValue

# A frequency is measured only where a latent at its target fires at least this often in a buffer.
EXPECTED_FIRINGS = 10


@dataclass(frozen=True, kw_only=True)
class BiasAdaptation:
    """Moves encoder biases so that each group of latents fires at most as often as its target.

    Args:
        targets: Target activation frequency of each group, in (0, 1).
        step_down: Step down, in units of the latent's largest pre-activation (gamma minus).
        step_up: Step up of a dead latent, in units of its group's mean largest one (gamma plus).
        floor: A latent that fires less often than this is dead (epsilon).
        buffer: Rows between two moves.
        lowest: Biases never fall below this; -1 is meant for inputs and directions of norm one.
        highest: Biases never rise above this.

    Example:
        >>> rule = BiasAdaptation(targets=(0.5,), buffer=20, step_down=0.1)
        >>> bias, state = torch.zeros(1), rule.initial(1, seed=0)
        >>> rule.update(bias, state, rule.observe(torch.full((20, 1), 0.5)))
        True
        >>> bias.tolist()
        [-0.05000000074505806]

    Reference:
        Chen et al., 2025, arXiv 2506.14002, algorithm 1.
    """

    targets: tuple[float, ...]
    step_down: float = 0.01
    step_up: float = 0.01
    floor: float = 1e-6
    buffer: int = 40_960
    lowest: float = -1.0
    highest: float = 0.0

    def __post_init__(self) -> None:
        if not self.targets or not all(0 < p < 1 for p in self.targets):
            raise InvalidValue(
                f"targets={self.targets} are not allowed: give frequencies above 0 and below 1"
            )
        for name in ("step_down", "step_up", "floor"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InvalidValue(
                    f"{name}={getattr(self, name)!r} is not allowed: give a number of at least 0"
                )
        if not -math.inf < self.lowest < self.highest < math.inf:
            raise InvalidValue(
                f"lowest={self.lowest} and highest={self.highest} are not allowed: biases move "
                "between two finite numbers, the first below the second"
            )
        needed = math.ceil(EXPECTED_FIRINGS / min(self.targets))
        if self.buffer < needed:
            raise InvalidValue(
                f"buffer={self.buffer} rows are too few to measure a frequency of "
                f"{min(self.targets):g}: give at least {needed}, or raise the lowest target"
            )

    def initial(self, latents: int, seed: int) -> dict[str, Tensor]:
        """Returns the state: the group of each latent, drawn at random, and empty counters.

        Raises:
            InvalidValue: If there are fewer latents than groups.
        """
        return {
            "group": random_groups(latents, len(self.targets), seed),
            "count": torch.zeros(latents, dtype=torch.int64),
            "largest": torch.zeros(latents),
            "rows": torch.tensor(0),
        }

    def observe(self, u: Tensor) -> dict[str, Tensor]:
        """Returns the statistics of a batch of pre-activations (rows, latents).

        Over ranks, "count" and "rows" are summed and of "largest" the maximum is taken.
        """
        return {
            "count": (u > 0).sum(0),
            "largest": u.amax(0).clamp_min(0),
            "rows": torch.tensor(len(u), device=u.device),
        }

    def update(
        self, bias: Tensor, state: Mapping[str, Tensor], statistics: Mapping[str, Tensor]
    ) -> bool:
        """Counts a batch and, when the buffer is full, moves the biases; all in place.

        Args:
            bias: (latents,), the encoder's, not trained by gradients.
            state: As from `initial`.
            statistics: As from `observe`.

        Returns:
            Whether the biases were moved.

        Raises:
            InvalidValue: If biases are outside their bounds, or pre-activations so large that the
                bounds cannot matter.
        """
        state["count"].add_(statistics["count"])
        state["rows"].add_(statistics["rows"])
        largest = state["largest"]
        torch.maximum(largest, statistics["largest"].to(largest.dtype), out=largest)
        if int(state["rows"]) < self.buffer:
            return False
        self._check_bias(bias, largest)
        frequency = state["count"].to(torch.float64) / state["rows"]
        bias.copy_(self.moved(bias, frequency, largest.to(bias.dtype), state["group"]))
        for name in ("count", "largest", "rows"):
            state[name].zero_()
        return True

    def moved(self, bias: Tensor, frequency: Tensor, largest: Tensor, group: Tensor) -> Tensor:
        """Returns the biases (latents,) after one move.

        Args:
            bias: (latents,).
            frequency: (latents,), share of the rows in which each latent was positive.
            largest: (latents,), largest pre-activation of each, at least 0.
            group: int64 (latents,).
        """
        target = torch.tensor(self.targets, dtype=torch.float64, device=bias.device)[group]
        lowered = (bias - self.step_down * largest).clamp_min(self.lowest)
        typical = group_means(largest, group, len(self.targets))
        raised = (bias + self.step_up * typical[group]).clamp_max(self.highest)
        too_often, dead = frequency > target, frequency < self.floor
        return torch.where(too_often, lowered, torch.where(dead, raised, bias))

    def _check_bias(self, bias: Tensor, largest: Tensor) -> None:
        outside = (bias < self.lowest) | (bias > self.highest)
        if bool(outside.any()):
            first = int(outside.nonzero()[0])
            raise InvalidValue(
                f"{int(outside.sum())} biases are outside [{self.lowest}, {self.highest}], first "
                f"latent {first} with {float(bias[first]):g}: they must start inside, and only the "
                "adaptation may move them; or widen lowest and highest"
            )
        reach = float((largest - bias).median())
        # With inputs, offset and directions of at most norm one no product exceeds two.
        if self.lowest < 0 and reach > -2 * self.lowest:
            raise InvalidValue(
                f"half of the latents reach {reach:.3g} before their bias, while biases end at "
                f"lowest={self.lowest:g}: they could not make the code sparse. Encode inputs of "
                f'norm one (row_norm="unit"), or set lowest to about {-reach:.2g}'
            )


def geometric_targets(high: float, low: float, groups: int) -> tuple[float, ...]:
    """Returns target frequencies that fall geometrically from high to low, one for each group.

    Raises:
        InvalidValue: If a frequency is not in (0, 1), low exceeds high, or there is no group.

    Example:
        >>> [round(p, 4) for p in geometric_targets(0.1, 0.001, 3)]
        [0.1, 0.01, 0.001]

    Reference:
        Chen et al., 2025, arXiv 2506.14002, section 3.
    """
    if not isinstance(groups, int) or isinstance(groups, bool) or groups < 1:
        raise InvalidValue(f"groups={groups!r} is not allowed: give a whole number of at least 1")
    if not (0 < high < 1 and 0 < low < 1):
        raise InvalidValue(
            f"high={high!r} and low={low!r} are not allowed: frequencies are above 0 and below 1"
        )
    if low > high:
        raise InvalidValue(f"low={low:g} exceeds high={high:g}: give the higher frequency first")
    if groups == 1:
        return (float(high),)
    return tuple(high * (low / high) ** (index / (groups - 1)) for index in range(groups))


def random_groups(latents: int, groups: int, seed: int) -> Tensor:
    """Returns the group of each latent, int64 (latents,): a random division into equal parts.

    Where the latents cannot be divided evenly, the sizes differ by one.

    Raises:
        InvalidValue: If there are fewer latents than groups.
    """
    if latents < groups:
        raise InvalidValue(
            f"{latents} latents cannot fill {groups} groups: give at most {latents} groups"
        )
    order = torch.randperm(latents, generator=seeds.generator(seed, "bias adaptation", "groups"))
    group = torch.empty(latents, dtype=torch.int64)
    group[order] = torch.arange(latents) % groups
    return group


def group_means(largest: Tensor, group: Tensor, groups: int) -> Tensor:
    """Returns (groups,): each group's mean of the positive values, 0 where there is none.

    Args:
        largest: (latents,), at least 0.
        group: int64 (latents,).
        groups: How many groups there are.
    """
    sums = largest.new_zeros(groups).index_add_(0, group, largest)
    counts = largest.new_zeros(groups).index_add_(0, group, (largest > 0).to(largest.dtype))
    return sums / counts.clamp_min(1)


def check_not_trained(bias: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Raises InvalidValue if an optimiser would train this bias too, or decay it."""
    trained: Iterable[Tensor] = (p for group in optimizer.param_groups for p in group["params"])
    if any(each is bias for each in trained):
        raise InvalidValue(
            "the encoder's bias is among the optimiser's parameters, but bias adaptation moves it: "
            "leave it out of the optimiser, weight decay included"
        )
