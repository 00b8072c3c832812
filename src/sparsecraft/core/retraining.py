"""How fast a pruned network is retrained: the learning rate of each step.

What counts as a good retraining schedule depends on the pre-training: all six are made from the
learning rates that it went through, one a step. Zimmer et al. compare them; the linear decay from
the largest rate (LLR) and its budgeted form that looks at what pruning destroyed (ALLR) win.

The official code strings several PyTorch schedulers together, which repeats the first rate after
the warm-up; here it comes once, and the rest follows one step earlier.

Reference:
    Zimmer et al., 2021, arXiv 2111.00843, sections 2 and 3; used in Zimmer et al., 2023, arXiv
    2306.16788. FT is of Han et al., 2015; LRW of Renda et al., 2020; SLR and CLR of Le, Hua, 2021.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from sparsecraft.core.errors import InvalidValue, UnknownName

Kind = Literal["FT", "LRW", "SLR", "CLR", "LLR", "ALLR"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, kw_only=True)
class RetrainSchedule:
    """The learning rate of each step of a retraining.

    Args:
        kind: "FT" keeps the last rate of the pre-training; "LRW" goes through its last rates again;
            "SLR" through all of them, in fewer steps; "CLR" falls from the largest rate to the
            smallest by half a cosine; "LLR" from the largest to zero in a line; "ALLR" too, from a
            rate that is lower where pruning changed little or the retraining is short.
        steps: Optimiser steps of the retraining.
        history: The learning rate of each step of the pre-training.
        warm_up: Fraction of the steps in which the rate first rises from zero, by half a cosine;
            FT and LRW have none.
        norm_drop: For ALLR: see `norm_drop`.
        pruned_fraction: For ALLR: the fraction of the weights left so far that was pruned now.

    Example:
        >>> schedule = RetrainSchedule(kind="LLR", steps=10, history=(0.1, 0.05))
        >>> [round(schedule.rate(step), 3) for step in (0, 1, 2, 9)]
        [0.0, 0.1, 0.089, 0.011]
    """

    kind: Kind = "LLR"
    steps: int
    history: tuple[float, ...]
    warm_up: float = 0.1
    norm_drop: float | None = None
    pruned_fraction: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "history", tuple(self.history))
        if self.kind not in KINDS:
            raise UnknownName("retraining schedule", str(self.kind), KINDS)
        if self.steps < 1:
            raise InvalidValue(f"steps={self.steps}: a retraining needs at least 1 step")
        if not self.history or not all(0 <= rate < math.inf for rate in self.history):
            raise InvalidValue(
                "history must hold the learning rate of every step of the pre-training, at least "
                "one, none of them negative or infinite"
            )
        if not 0 <= self.warm_up < 1:
            raise InvalidValue(f"warm_up={self.warm_up}: give a fraction of the steps, in [0, 1)")
        self._check_kind()

    def rate(self, step: int) -> float:
        """Returns the learning rate of a step, counted from 0."""
        if not 0 <= step < self.steps:
            raise InvalidValue(f"step={step}: the retraining has steps 0 to {self.steps - 1}")
        if self.kind == "FT":
            return self.history[-1]
        if self.kind == "LRW":
            return self.history[len(self.history) - self.steps + step]
        warm = int(self.warm_up * self.steps)
        if step < warm:
            return self.start * (1 - math.cos(math.pi * step / warm)) / 2
        return self._main((step - warm) / (self.steps - warm))

    def factor(self, step: int) -> float:
        """Returns the rate over the largest one of the pre-training, as `LambdaLR` wants it."""
        return self.rate(step) / self.peak if self.peak else 0.0

    @property
    def peak(self) -> float:
        """The largest learning rate of the pre-training."""
        return max(self.history)

    @property
    def start(self) -> float:
        """The rate from which the main part falls."""
        if self.kind == "SLR":
            return self.history[0]
        return self._adapted() if self.kind == "ALLR" else self.peak

    def _main(self, progress: float) -> float:
        """Returns the rate at a progress in [0, 1) of the part after the warm-up."""
        if self.kind == "SLR":
            return self.history[int(progress * len(self.history))]
        if self.kind == "CLR":
            lowest = min(self.history)
            return lowest + (self.peak - lowest) * (1 + math.cos(math.pi * progress)) / 2
        return self.start * (1 - progress)

    def _adapted(self) -> float:
        """Returns clip(peak * drop / sqrt(q), min(T / T_pretrain, 1) * peak, peak)."""
        drop, fraction = self.norm_drop or 0.0, self.pruned_fraction or 1.0
        wanted = self.peak * drop / math.sqrt(fraction)
        lowest = min(self.steps / len(self.history), 1.0) * self.peak
        return min(max(wanted, lowest), self.peak)

    def _check_kind(self) -> None:
        if self.kind == "LRW" and self.steps > len(self.history):
            raise InvalidValue(
                f"LRW goes through the last {self.steps} rates of the pre-training again, which "
                f"had only {len(self.history)}. Retrain for fewer steps, or take SLR or LLR."
            )
        if self.kind != "ALLR":
            return
        if self.norm_drop is None or self.norm_drop < 0:
            raise InvalidValue(
                f"norm_drop={self.norm_drop}: ALLR needs the share of the norm that pruning took; "
                "norm_drop(before, after) gives it"
            )
        if self.pruned_fraction is None or not 0 < self.pruned_fraction <= 1:
            raise InvalidValue(
                f"pruned_fraction={self.pruned_fraction}: ALLR needs the fraction of the remaining "
                "weights that was pruned, in (0, 1]"
            )


def norm_drop(before: Iterable[Tensor], after: Iterable[Tensor]) -> float:
    """Returns sqrt(| ||before||^2 - ||after||^2 |) / ||before||, over all tensors together.

    For weights set to zero that is ||before - after|| / ||before||, the share of the norm that
    pruning took; a norm of zero gives 0.

    Args:
        before: Weights and biases before pruning.
        after: The same after it.

    Example:
        >>> import torch
        >>> norm_drop([torch.tensor([3.0, 4.0])], [torch.tensor([0.0, 4.0])])
        0.6
    """
    first, second = (
        sum(float(tensor.detach().double().square().sum()) for tensor in tensors)
        for tensors in (before, after)
    )
    return math.sqrt(abs(first - second) / first) if first else 0.0
