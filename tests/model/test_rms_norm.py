"""An RMS norm is known by what it does."""

import pytest
import torch
from torch import nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.model.rms_norm import RMSGain, rms_gain


class Norm(nn.Module):
    """Any norm: what is subtracted, and what scales, are given."""

    def __init__(self, gain, center=0.0, shift=0.0):
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(-0.5, 0.7, 8))
        self.gain, self.center, self.shift = gain, center, shift

    def forward(self, x):
        x = x - self.center * x.mean(-1, keepdim=True)
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.gain(self.scale) + (
            self.shift
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_gain_is_the_weight(dtype):
    norm = nn.RMSNorm(8, dtype=dtype)
    nn.init.uniform_(norm.weight, -2, 2)
    assert rms_gain(norm, "norm") == RMSGain("weight", 0)


def test_the_gain_may_be_kept_less_one():
    gain = rms_gain(Norm(lambda scale: 1 + scale), "norm")
    assert gain == RMSGain("scale", 1)
    assert gain.neutral == 0.0
    assert gain.of(torch.tensor([0.5])).tolist() == [1.5]


@pytest.mark.parametrize(
    ("norm", "reason"),
    [
        (nn.LayerNorm(8), r"norm \(LayerNorm\) is no RMS norm: it subtracts the mean"),
        (nn.LayerNorm(8, bias=False), "it subtracts the mean"),
        (Norm(lambda scale: scale, center=1.0), "it subtracts the mean or adds a bias"),
        (Norm(lambda scale: scale, shift=0.5), "it subtracts the mean or adds a bias"),
        (Norm(lambda scale: scale.exp()), "its gain is not its weight"),
        (nn.RMSNorm(8, elementwise_affine=False), "not one vector of weights"),
        (nn.Linear(8, 8, bias=False), "not one vector of weights"),
    ],
)
def test_everything_else_is_refused_with_the_reason(norm, reason):
    with pytest.raises(InvalidValue, match=rf"{reason}.*Only an RMS norm commutes"):
        rms_gain(norm, "norm")
