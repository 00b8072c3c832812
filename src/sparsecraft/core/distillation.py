"""How far a student is from a teacher: divergence of logits, relative error of hidden states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsecraft.core.errors import InvalidValue


def divergence(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, tokens: Tensor | None = None
) -> Tensor:
    """Returns T^2 KL(teacher || student) in nats, the mean over the tokens.

    Args:
        student: Logits (..., classes), with gradient.
        teacher: Logits of the same shape.
        temperature: T, divides the logits of both.
        tokens: Whether each token counts, of the leading shape; None counts all.

    Example:
        >>> logits = torch.tensor([[0.0, 1.0]])
        >>> float(divergence(logits, logits))
        0.0

    Reference:
        Hinton, Vinyals, Dean, 2015, arXiv 1503.02531, section 2.
    """
    if student.shape != teacher.shape:
        raise InvalidValue(
            f"the student's logits have shape {tuple(student.shape)}, the teacher's "
            f"{tuple(teacher.shape)}: both need the same vocabulary and the same inputs"
        )
    learned = (_precise(student) / temperature).log_softmax(-1)
    taught = (_precise(teacher) / temperature).log_softmax(-1)
    found = F.kl_div(learned, taught, log_target=True, reduction="none").sum(-1)
    return temperature**2 * _mean(found, tokens)


def relative_error(
    student: Sequence[Tensor], teacher: Sequence[Tensor], eps: float = 1e-6
) -> Tensor:
    """Returns sum_l mean((s_l - t_l)^2) / (mean(t_l^2) + eps) over the layers.

    Args:
        student: Hidden states, one for each layer, with gradient.
        teacher: Of the same number and shapes.
        eps: Keeps a layer of zeros from dividing by zero.

    Reference:
        AST, 2024, arXiv 2407.20584: the layer loss of its official code.
    """
    if [x.shape for x in student] != [x.shape for x in teacher]:
        raise InvalidValue(
            f"the student has hidden states {[tuple(x.shape) for x in student][:3]}, the teacher "
            f"{[tuple(x.shape) for x in teacher][:3]}: both need the same blocks and inputs"
        )
    errors = [
        (mine - theirs).square().mean() / (theirs.square().mean() + eps)
        for mine, theirs in zip(map(_precise, student), map(_precise, teacher), strict=True)
    ]
    return torch.stack(errors).sum()


def counted_tokens(inputs: Mapping[str, Any], logits: Tensor) -> Tensor | None:
    """Returns which tokens are no padding, or None where all count.

    Args:
        inputs: Of the forward pass, with an "attention_mask" (batch, tokens) where there is one.
        logits: (batch, tokens, classes) or (batch, classes).
    """
    mask = inputs.get("attention_mask")
    if mask is None or mask.shape != logits.shape[:-1]:
        return None
    return mask.bool()


def _mean(values: Tensor, tokens: Tensor | None) -> Tensor:
    if tokens is None:
        return values.mean()
    return torch.where(tokens, values, 0).sum() / tokens.sum().clamp(min=1)


def _precise(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
