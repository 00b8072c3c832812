"""JumpReLU: a pre-activation passes unchanged above a threshold that each latent learns.

Rajamanoharan et al. (2024) train thresholds by straight-through estimators: a rectangle of a set
bandwidth around the threshold stands for the derivative of the jump. The penalty is the number of
entries that are not zero, which shrinks nothing. Anthropic's form (2025) puts a tanh of the values
in its place. Thresholds are kept as logarithms, so they stay positive; their gradient is then the
threshold's times the threshold.

Where the loss and the penalty differ from the paper: the penalty's weight is warmed up by the host,
and latents that have been dead for long may be pulled towards their threshold (Conerly et al.,
2025).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from sparsecraft.core import penalties
from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.code import Code
from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.kinds import CodeStep, Elementwise, Own
from sparsecraft.core.penalties.nonnegative import above

Form = Literal["step", "tanh"]
FORMS: tuple[Form, ...] = get_args(Form)


@method(
    "jumprelu",
    paper=Paper(
        "Rajamanoharan et al.",
        2024,
        "2407.14435",
        title="Jumping Ahead: Improving Reconstruction Fidelity with JumpReLU Sparse Autoencoders",
    ),
    taxonomy=Taxonomy(
        of="codes",
        when="during training",
        start_to_end="dense to sparse",
        mask="input-dependent",
        criterion="optimisation-based",
        granularity=("unstructured",),
        allocation="learned",
        budget="soft",
        needs=("data", "pretrained model"),
        cost="one training of the dictionary",
        runtime="FLOPs",
    ),
)
@dataclass(frozen=True, kw_only=True)
class JumpReLU(Elementwise):
    """Keeps what exceeds a learned threshold as it is, and pays for each entry kept.

    Args:
        l0: Weight of the penalty, reached at the end of the warm-up.
        target: Entries of a code to aim at; the penalty is then (L0 / target - 1)^2 instead of L0.
        form: "step" counts entries; "tanh" sums tanh(tanh_scale * z_j ||d_j||).
        threshold: Of every latent at first.
        bandwidth: Width of the rectangle that stands for the derivative of the jump.
        tanh_scale: How sharply the tanh counts.
        pre_activation: Weight of the loss that pulls dead latents towards their threshold.
        to_input: Whether the jump's derivative also reaches the encoder, as in Conerly et al.;
            otherwise thresholds alone.

    Reference:
        Rajamanoharan et al., 2024, arXiv 2407.14435, eqs. 3, 9, 11, 12, and its appendix on a
        desired sparsity for the target; tanh and dead latents: Conerly et al., 2025,
        transformer-circuits.pub/2025/january-update.
    """

    l0: float = 1.0
    target: float | None = None
    form: Form = "step"
    threshold: float = 0.01
    bandwidth: float = 0.05
    tanh_scale: float = 4.0
    pre_activation: float = 3e-6
    to_input: bool = False

    def __post_init__(self) -> None:
        penalties.check_strength(self.l0)
        penalties.check_strength(self.pre_activation)
        if self.form not in FORMS:
            raise UnknownName("form", str(self.form), FORMS)
        for name in ("threshold", "bandwidth", "tanh_scale", "target"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InvalidValue(f"{name}={value!r} is not allowed: give a number above 0")
        if self.target is not None and self.form == "tanh":
            raise InvalidValue(
                "target is for form='step', which counts entries; a tanh is no count. Leave one out"
            )

    def check(self, d_in: int, d_sae: int) -> None:
        """Raises InvalidValue if the target exceeds the dictionary."""
        if self.target is not None and self.target > d_sae:
            raise InvalidValue(
                f"target={self.target:g} exceeds d_sae={d_sae}: give at most {d_sae} entries"
            )

    def initial(self, d_sae: int, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns the logarithms of the thresholds, which are trained."""
        return {"log_threshold": torch.full((d_sae,), math.log(self.threshold))}, {}

    def restart(self, own: Own, latents: Tensor) -> None:
        """Sets thresholds to the first ones; those that grew keep a dead latent dead."""
        own.parameters["log_threshold"][latents] = math.log(self.threshold)

    def apply(self, u: Tensor, own: Own) -> Tensor:
        """Returns u where u > theta, else 0; theta has the rectangle's gradient."""
        z: Tensor = _Jump.apply(u, self._threshold(u, own), self.bandwidth, self.to_input)
        return z

    def losses(self, step: CodeStep, own: Own) -> dict[str, Tensor]:
        """Returns the penalty "l0", and "pre_activation" while there are dead latents."""
        theta = self._threshold(step.u, own)
        found = {"l0": self.l0 * step.warmth * self._counted(step, theta)}
        if self.pre_activation and bool(step.dead.any()):
            short = (theta - step.u).relu()[:, step.dead]
            norms = step.decoder.norm(dim=1)[step.dead]
            found["pre_activation"] = self.pre_activation * (short @ norms.to(short.dtype)).mean()
        return found

    def inference_threshold(self, own: Own) -> Tensor:
        """Returns theta (d_sae,), without gradients."""
        return own.parameters["log_threshold"].detach().exp()

    def _counted(self, step: CodeStep, theta: Tensor) -> Tensor:
        """Returns the penalty before its weight."""
        if self.form == "tanh":
            z = step.z.dense() if isinstance(step.z, Code) else step.z
            norms = step.decoder.norm(dim=1).to(z.dtype)
            return torch.tanh(self.tanh_scale * z * norms).sum(1).mean()
        active: Tensor = _Step.apply(step.u, theta, self.bandwidth, self.to_input)
        l0 = active.sum(1).mean()
        return l0 if self.target is None else (l0 / self.target - 1).square()

    def _threshold(self, u: Tensor, own: Own) -> Tensor:
        return own.parameters["log_threshold"].exp().to(u.dtype)


class _Jump(torch.autograd.Function):
    """u 1(u > theta); eq. 11 for theta, and for u the derivative beside the jump or with it."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, theta: Tensor, bandwidth: float, to_input: bool) -> Tensor:
        ctx.save_for_backward(u, theta)
        ctx.bandwidth, ctx.to_input = bandwidth, to_input
        return above(u, theta)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        u, theta = ctx.saved_tensors
        (gradient,) = gradients
        jump = theta / ctx.bandwidth * gradient * _near(u, theta, ctx.bandwidth)
        to_u = gradient * (u > theta)
        return to_u + jump if ctx.to_input else to_u, -jump.sum(0), None, None


class _Step(torch.autograd.Function):
    """1(u > theta); eq. 12 for theta, and for u nothing or the same with the other sign."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, theta: Tensor, bandwidth: float, to_input: bool) -> Tensor:
        ctx.save_for_backward(u, theta)
        ctx.bandwidth, ctx.to_input = bandwidth, to_input
        return (u > theta).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        u, theta = ctx.saved_tensors
        jump = gradients[0] * _near(u, theta, ctx.bandwidth) / ctx.bandwidth
        return jump if ctx.to_input else None, -jump.sum(0), None, None


def _near(u: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
    """Returns where the rectangle around the threshold is not zero, (rows, d_sae) bool."""
    return (u - theta).abs() < bandwidth / 2
