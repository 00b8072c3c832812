"""Adam that pulls masked weights to zero without its momentum knowing: AdamS and annealed SR-STE.

Both start from Adam and keep the first moment of the loss's gradient alone. What the step uses,
and what the second moment is made of, is that moment with a *pull* on the masked entries: towards
zero at constant force, its share growing from 0 to 1 (CAST), or in proportion to the weight, its
strength growing over a number of steps (AST). Kept entries feel no pull.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue

Form = Literal["mixed", "added", "weight"]


@dataclass(frozen=True)
class Pull:
    """What draws masked weights to zero in one step.

    Args:
        form: "mixed" replaces a share of the moment by strength * sign(w); "added" adds
            share * strength * sign(w) to it; "weight" adds share * strength * w.
        strength: lambda, at least 0.
        share: alpha, in [0, 1].
        decoupled: Whether the stored first moment is free of the pull. Otherwise the gradient
            itself is pulled and Adam follows as usual.
        selective: Whether only masked entries are pulled, or all.

    Reference:
        Huang et al., 2025, arXiv 2509.25996, algorithm 1 ("mixed"); AST, 2024, arXiv 2407.20584
        ("weight").
    """

    form: Form
    strength: float
    share: float = 1.0
    decoupled: bool = True
    selective: bool = True

    def __post_init__(self) -> None:
        if self.form not in ("mixed", "added", "weight"):
            raise InvalidValue(f"form={self.form!r} is not one of 'mixed', 'added', 'weight'")
        if not self.strength >= 0:
            raise InvalidValue(f"strength={self.strength!r} is not allowed: lambda is at least 0")
        if not 0 <= self.share <= 1:
            raise InvalidValue(
                f"share={self.share!r} is not allowed: it goes from 0 to 1 over the training. "
                "A step beyond total_steps gives more than 1: plan the training longer."
            )

    def __call__(self, moment: Tensor, weight: Tensor, keep: Tensor) -> Tensor:
        """Returns the moment with the pull on the entries that are not kept.

        Args:
            moment: mu_t, of the weight's shape.
            weight: theta_{t-1}.
            keep: bool, True where kept.

        Example:
            >>> pull = Pull("mixed", strength=2.0, share=0.5)
            >>> pull(torch.ones(2), torch.tensor([-3.0, 5.0]), torch.tensor([False, True]))
            tensor([-0.5000,  1.0000])
        """
        force = self.share * self.strength * (weight if self.form == "weight" else weight.sign())
        left = (1 - self.share) * moment if self.form == "mixed" else moment
        pulled = left + force  # CAST, algorithm 1: mu~ = (1 - alpha) mu + alpha lambda sign(theta)
        return torch.where(keep, moment, pulled) if self.selective else pulled


@dataclass(frozen=True)
class Rates:
    """The constants of an Adam step.

    Args:
        rate: Learning rate gamma.
        betas: Decay of the first and of the second moment.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled, of all entries, before the step.
    """

    rate: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0


@torch.no_grad()
def adam_step_(
    weight: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    *,
    done: int,
    rates: Rates,
    keep: Tensor | None = None,
    pull: Pull | None = None,
) -> None:
    """Does one step of Adam in place, pulled where a mask and a pull are given.

    Args:
        weight: theta_{t-1}, becomes theta_t.
        gradient: Of the loss.
        mean: First moment mu of the gradient.
        square: Second moment v, of the pulled first moment where there is a pull, of the gradient
            otherwise.
        done: t, the number of this step from 1, for the corrections of the bias.
        rates: The constants.
        keep: bool of the weight's shape, True where kept.
        pull: What draws the others to zero.

    Reference:
        Huang et al., 2025, arXiv 2509.25996, algorithm 1; the order of weight decay, pull and step
        is that of AST's official optimiser.
    """
    first, second = rates.betas
    if rates.weight_decay:
        weight.mul_(1 - rates.rate * rates.weight_decay)
    moment, squared = mean, gradient
    if keep is None or pull is None:
        mean.lerp_(gradient, 1 - first)
    elif pull.decoupled:
        mean.lerp_(gradient, 1 - first)
        # Kept entries too: v is made of mu~ = mu there, not of the gradient.
        moment = squared = pull(mean, weight, keep)
    else:
        squared = pull(gradient, weight, keep)
        mean.lerp_(squared, 1 - first)
    square.mul_(second).addcmul_(squared, squared, value=1 - second)
    denominator = (square / (1 - second**done)).sqrt_().add_(rates.eps)
    weight.addcdiv_(moment, denominator, value=-rates.rate / (1 - first**done))


def share_at(step: int, total: int) -> float:
    """Returns alpha_t = t / T, the share of the pull in step t = 0, ..., T - 1.

    Raises:
        InvalidValue: If there are no steps, or the training is over.
    """
    if total < 1:
        raise InvalidValue(f"total_steps={total} is not allowed: the pull grows over a known total")
    if not 0 <= step < total:
        raise InvalidValue(
            f"step {step} lies outside the {total} steps planned: the share of the pull would be "
            f"{step / total:g}. Give total_steps the length of the whole training."
        )
    return step / total


def reach(rates: Iterable[float], total: int) -> float:
    """Returns sum_t gamma_t t / T: about how far the growing pull can move a masked weight.

    Once the pull dominates, mu~ / sqrt(v) is the weight's sign, so that a masked weight moves by
    the learning rate in each step, whatever lambda is. Weights larger than the reach do not get to
    zero; about three times their mean magnitude is a safe choice.

    Args:
        rates: The learning rate of each step.
        total: Steps of the whole training.

    Example:
        >>> round(reach([0.01] * 100, total=100), 3)
        0.495
    """
    return sum(rate * share_at(step, total) for step, rate in enumerate(rates))


def residue(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> float:
    """Returns the mean magnitude of masked weights over that of kept ones, of all layers together.

    Args:
        weights: By name.
        masks: bool of the same shapes, True where kept.

    Example:
        >>> residue({"w": torch.tensor([4.0, 1.0])}, {"w": torch.tensor([True, False])})
        0.25
    """
    kept = torch.cat([weights[name].detach()[keep].abs().flatten() for name, keep in masks.items()])
    gone = torch.cat(
        [weights[name].detach()[~keep].abs().flatten() for name, keep in masks.items()]
    )
    if not len(gone):
        return 0.0
    return float(gone.double().mean() / kept.double().mean().clamp(min=1e-300))
