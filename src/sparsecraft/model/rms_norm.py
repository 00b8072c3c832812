"""Tells by its behaviour whether a module is an RMS normalisation, and how its weight scales."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.seeds import generator

_TOKENS = 16
# Far above any epsilon inside the root, which is then invisible.
_SCALE = 100.0


@dataclass(frozen=True)
class RMSGain:
    """How a norm scales what it has normalised: by its weight plus `offset`, 0 or 1.

    Args:
        parameter: Name of the weight inside the norm.
        offset: 1 where the module keeps gain - 1, as Gemma does.
    """

    parameter: str
    offset: int = 0

    def of(self, weight: Tensor) -> Tensor:
        """Returns the gain (width,) in float64."""
        return weight.detach().double() + self.offset

    @property
    def neutral(self) -> float:
        """The weight that scales by one."""
        return 1.0 - self.offset


@torch.no_grad()
def rms_gain(norm: nn.Module, name: str) -> RMSGain:
    """Returns how an RMS norm scales, found by normalising numbers of a known mean.

    Args:
        norm: A module of one vector of weights.
        name: For the message.

    Raises:
        InvalidValue: If it subtracts the mean, adds a bias, or is no RMS norm for another reason.

    Example:
        >>> rms_gain(nn.RMSNorm(8), "norm")
        RMSGain(parameter='weight', offset=0)
    """
    if isinstance(norm, nn.LayerNorm):
        raise InvalidValue(_not_rms(norm, name, "it subtracts the mean"))
    held = list(norm.named_parameters())
    if len(held) != 1 or held[0][1].dim() != 1:
        raise InvalidValue(_not_rms(norm, name, "it has a bias, or not one vector of weights"))
    parameter, weight = held[0]
    draw = torch.randn(_TOKENS, len(weight), generator=generator(0, "rms norm"))
    x = _SCALE * (draw + 1).to(weight)
    unit = x.double() / x.double().pow(2).mean(-1, keepdim=True).sqrt()
    given = norm(x[None])[0].double()
    gain = (given * unit).sum(0) / unit.pow(2).sum(0)
    tolerance = 8 * torch.finfo(weight.dtype).eps
    if not torch.allclose(
        given, gain * unit, rtol=tolerance, atol=tolerance * float(given.abs().max())
    ):
        raise InvalidValue(_not_rms(norm, name, "it subtracts the mean or adds a bias"))
    offset = round(float((gain - weight.double()).mean()))
    if offset not in (0, 1) or not torch.allclose(
        gain, weight.double() + offset, rtol=tolerance, atol=2 * tolerance
    ):
        raise InvalidValue(_not_rms(norm, name, "its gain is not its weight"))
    return RMSGain(parameter, offset)


def _not_rms(norm: nn.Module, name: str, reason: str) -> str:
    return (
        f"{name} ({type(norm).__name__}) is no RMS norm: {reason}. Only an RMS norm commutes with "
        "a rotation of its input. Use the method without the rotation (transform=False, "
        "--no-rotation)."
    )
