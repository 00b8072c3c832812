"""Gradients of penalties on the scales of batch normalisation, to be added to the task's.

They are added to the gradient before the optimiser's step, not to the loss and not to the scale
after the step, so that momentum, Nesterov's look-ahead and weight decay act on the sum.
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from sparsecraft.core.errors import InvalidValue, UnknownName

Penalty = Literal["l1", "l2", "smooth_l1", "small_l2"]
PENALTIES: tuple[Penalty, ...] = get_args(Penalty)
SMALL = 0.09
"""Scales up to this magnitude are what "small_l2" works on."""


def scale_gradient(
    scale: Tensor, strength: float, penalty: Penalty = "l1", *, rate: float | None = None
) -> Tensor:
    """Returns what a penalty adds to the gradient of each scale.

    Args:
        scale: (channels,).
        strength: Lambda, at least 0.
        penalty: "l1" adds lambda sign(g), nothing where g is zero. "l2" adds lambda g. "smooth_l1"
            is l1 that turns into lambda g where |g| < rate * lambda, one step of l1, so that a
            scale comes to rest at zero instead of jumping across it. "small_l2" is l2 on
            |g| <= 0.09 alone, which leaves large scales free.
        rate: Learning rate of the step, for "smooth_l1".

    Raises:
        UnknownName: If the penalty is none.
        InvalidValue: If the strength is negative, or "smooth_l1" gets no learning rate.

    Example:
        >>> import torch
        >>> scale_gradient(torch.tensor([0.5, -0.5, 0.0]), 0.125)
        tensor([ 0.1250, -0.1250,  0.0000])

    Reference:
        Jiang et al., 2022, arXiv 2201.06776, official code.
    """
    check_penalty(penalty, strength)
    if penalty == "l2":
        return strength * scale
    if penalty == "small_l2":
        return (strength * scale).masked_fill(scale.abs() > SMALL, 0)
    jump = strength * scale.sign()
    if penalty == "l1":
        return jump
    if rate is None or not rate >= 0:
        raise InvalidValue(
            f"smooth_l1 needs the learning rate of the step, at least 0, and got rate={rate!r}: "
            "it is smooth within one step of zero, rate * strength. Give rate=..., or use 'l1'."
        )
    return jump.where(scale.abs() >= rate * strength, strength * scale)


def check_penalty(penalty: str, strength: float) -> None:
    """Raises UnknownName or InvalidValue unless both are allowed."""
    if penalty not in PENALTIES:
        raise UnknownName("penalty on scales", penalty, PENALTIES)
    if not 0 <= strength < float("inf"):
        raise InvalidValue(f"strength={strength!r} is not allowed: it is at least 0")
