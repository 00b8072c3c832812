"""Methods that make codes: how the pre-activations of a dictionary become sparse.

An activation is a frozen description of tensors in, tensors out. What it trains or remembers is
handed to it as `Own`, which the host (`sparsecraft.SparseAutoencoder`) keeps as parameters and
buffers, saves, moves and reduces over ranks.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sparsecraft.core.code import Code
from sparsecraft.core.code_thresholds import whole_threshold
from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.kinds.base import Method
from sparsecraft.core.penalties import Selection

Reduction = Literal["sum", "max", "min"]


@dataclass
class Own:
    """What an activation trains (`parameters`) and remembers (`state`), by name.

    Args:
        bias: (d_sae,), the encoder's bias; only an activation that `moves_bias` writes to it.
        parameters: Trained by gradients.
        state: Buffers: thresholds, running densities, counters. Changed in place only.
    """

    bias: Tensor
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    state: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class CodeStep:
    """One training batch as an activation's losses see it, in the units of the loss.

    Args:
        x: (rows, d_in), what was encoded.
        target: (rows, d_out), what is reconstructed.
        u: (rows, d_sae) pre-activations.
        z: The code, dense (rows, d_sae) or sparse.
        reconstruction: (rows, d_out).
        frozen_decode: Decodes a dense code with the decoder held constant.
        decoder: (d_sae, d_out).
        gradient: (rows, d_out) of the model's loss with respect to the target, if the store has it.
        warmth: How far the penalty is warmed up, in [0, 1].
        dead: bool (d_sae,), latents that have not fired for long.
    """

    x: Tensor
    target: Tensor
    u: Tensor
    z: Tensor | Code
    reconstruction: Tensor
    frozen_decode: Callable[[Tensor], Tensor]
    decoder: Tensor
    gradient: Tensor | None
    warmth: float
    dead: Tensor


@dataclass(frozen=True)
class Side:
    """What a selection may look at beside the pre-activations.

    Args:
        decoder: (d_sae, d_out), held constant.
        gradient: (rows, d_out) of the model's loss with respect to what is reconstructed, or None.
    """

    decoder: Tensor
    gradient: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Activation(Method):
    """How pre-activations become a sparse code; subclass `Elementwise` or `Selecting`."""

    signed: ClassVar[bool] = False
    """Whether a code may have negative entries."""
    needs_gradient: ClassVar[bool] = False
    """Whether training wants the gradient of the model's loss with each activation."""
    moves_bias: ClassVar[bool] = False
    """Whether `update` sets the encoder's bias, which is then not trained by gradients."""
    reductions: ClassVar[Mapping[str, Reduction]] = {}
    """How each statistic that `observe` returns is joined over ranks."""

    def check(self, d_in: int, d_sae: int) -> None:
        """Raises InvalidValue if the settings do not suit the size of the dictionary."""

    def initial(self, d_sae: int, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns the first (parameters, state) by name, on the CPU in float32 (counters int64)."""
        return {}, {}

    def rectified(self) -> Activation | None:
        """Returns what gives a signed code as positive parts of mirrored latents, or None.

        It remembers the same state as this activation.
        """
        return None

    def reads_pre_activations(self) -> bool:
        """Returns whether losses or statistics may look at all pre-activations of a batch.

        Where they do not, the host need not form the largest tensor of a training step.
        """
        kind = type(self)
        return kind.losses is not Activation.losses or kind.observe is not Activation.observe

    def losses(self, step: CodeStep, own: Own) -> dict[str, Tensor]:
        """Returns what is added to the reconstruction loss, weighted, by name for the log."""
        return {}

    def observe(self, u: Tensor, z: Tensor | Code, own: Own, side: Side) -> dict[str, Tensor]:
        """Returns the statistics of a training batch that `update` needs, without gradients.

        Args:
            u: (rows, d_sae) pre-activations.
            z: The code of the batch.
            own: What the activation remembers; only `update` changes it.
            side: The decoder, and the gradient if the store has it.
        """
        return {}

    def restart(self, own: Own, latents: Tensor) -> None:
        """Sets what it trains for some latents (int64 indices) to its first values, in place.

        Called without gradients for latents that died and start anew; the host has set their
        weights and their entries of the encoder's bias.
        """

    def update(self, own: Own, statistics: Mapping[str, Tensor], progress: float) -> None:
        """Changes state (and bias) in place after a step, from statistics joined over ranks.

        Args:
            own: What the activation remembers.
            statistics: What `observe` returned, reduced.
            progress: Share of the training that is done, in [0, 1].
        """


@dataclass(frozen=True, kw_only=True)
class Elementwise(Activation):
    """A code whose every entry follows from its own pre-activation."""

    @abstractmethod
    def apply(self, u: Tensor, own: Own) -> Tensor:
        """Returns the code (rows, d_sae) of pre-activations, differentiable in u and parameters."""

    def iterate(self, u: Tensor, own: Own, encoder: Tensor, decoder: Tensor, steps: int) -> Tensor:
        """Returns the code after proximal gradient steps from zero; one step is `apply`.

        Args:
            u: (rows, d_sae) pre-activations.
            own: What the activation trains and remembers.
            encoder: (d_in, d_sae).
            decoder: (d_sae, d_out); d_out is d_in where there is more than one step.
            steps: At least 1.
        """
        z = self.apply(u, own)
        for _ in range(steps - 1):
            z = self.apply(z + u - (z @ decoder) @ encoder, own)
        return z

    def inference_threshold(self, own: Own) -> Tensor | None:
        """Returns (d_sae,) theta if the code is u where u > theta (JumpReLU), else None."""
        return None


@dataclass(frozen=True, kw_only=True)
class Selecting(Activation):
    """A code that keeps selected pre-activations as they are, and drops the rest."""

    @abstractmethod
    def penalty(self) -> Selection:
        """Returns the penalty whose prox selects in training."""

    def scores(self, u: Tensor, side: Side) -> Tensor:
        """Returns (rows, d_sae), what is ranked; by default the pre-activations."""
        return u

    def select(self, u: Tensor, own: Own, side: Side, *, training: bool) -> Code:
        """Returns the code of pre-activations (rows, d_sae); called without gradients.

        Out of training a selection over the batch or over features would tie rows to each other;
        thresholds stand in for it.

        Raises:
            InvalidValue: If such thresholds were never calibrated.
        """
        penalty = self.penalty()
        if training or penalty.scope == "token":
            chosen = penalty.select(self.scores(u, side))
            return chosen.with_values(u[chosen.rows(), chosen.columns])
        threshold = self.inference_threshold(own)
        if threshold is None or bool(torch.isnan(threshold).any()):
            raise InvalidValue(
                f"{type(self).__name__} selects over the {penalty.scope}, so rows that come alone "
                "need thresholds, and none were calibrated. Train it, or call "
                "freeze_thresholds(activations) on at least 100,000 rows."
            )
        return Code.of(u, penalty.threshold_mask(u, threshold.to(u.dtype)))

    def calibrate(self, batches: Iterable[Tensor], rows: int, own: Own) -> Tensor | None:
        """Returns thresholds with which these rows alone keep what training would keep on average.

        On them the mean number of entries is then k exactly, unless fewer are positive or several
        equal the last one. The batches are read once and never held whole.

        Args:
            batches: (rows of the batch, d_sae) each, what is ranked (`scores`).
            rows: Of all batches together.
            own: What the activation remembers; it is not changed.

        Returns:
            (1,), or (d_sae,) where each latent has a budget of its own: what the host writes to
            the state "threshold". None where the scope is the token, which needs none.
        """
        penalty = self.penalty()
        if penalty.scope == "token":
            return None
        if penalty.scope == "batch":
            return whole_threshold(batches, penalty.k * rows, absolute=penalty.signed)
        raise NotImplementedError(f"{type(self).__name__} must calibrate its own thresholds")

    def inference_threshold(self, own: Own) -> Tensor | None:
        """Returns (d_sae,) or (1,) thresholds for rows that come alone, NaN where unset, or None.

        None where the scope is the token, which needs none.
        """
        return own.state.get("threshold")
