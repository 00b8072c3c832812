"""How an autoencoder is trained: one frozen description."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.kinds import Activation, Selecting
from sparsecraft.kernels.codes.encoder import PRECISIONS, Precision
from sparsecraft.model.sae.auxiliary import Auxiliary, AuxK
from sparsecraft.model.sae.resampling import Resampling

_DECODERS = ("auto", "unit", "free")
_PREFIX_LOSSES = ("mean", "sum")
_BIASES = ("median", "mean", "keep")


@dataclass(frozen=True, kw_only=True)
class SAETraining:
    """Settings of `SparseAutoencoder.fit`.

    Args:
        steps: Of the optimiser.
        batch: Rows in a step, over all ranks together.
        micro_batch: Rows that each rank works on at once, so that large batches need less memory;
            None: all. For activations that look at each row alone the step is the same, but for
            what belongs to a batch: variances (AuxK, AuxZipf), a target L0 (JumpReLU) and the first
            step's scale of gradients (GradientTopK) are those of each piece, as they are of each
            rank.
        learning_rate: At its peak; None: 2e-4 / sqrt(d_sae / 2^14).
        warm_up: Steps in which it rises linearly; None: a twentieth of the steps, at most 1000.
        decay: Share of the steps at the end in which it falls linearly to zero.
        penalty_warm_up: Share of the steps in which penalties of the activation rise linearly.
        betas: Of Adam.
        epsilon: Of Adam.
        clip: What the norm of all gradients together is clipped to; None: nothing.
        auxiliary: What revives dead latents: AuxK(), another Auxiliary, or None. "auto" is AuxK()
            for an activation that selects, and None for one that has losses or a controller.
        resample: Resampling(...) of dead latents, or None.
        scale_inputs: Whether activations are brought to E ||x|| = sqrt(d_in) for the training; the
            number is folded into the weights afterwards. Rows that `row_norm` scales need none.
        decoder: "unit" keeps the norm of each row at one (gradients are projected first), "free"
            does not; "auto" is "unit", and "free" for a transcoder, whose rows begin as zeros.
        bias: The first b_dec: the geometric "median" or the "mean" of a sample, or "keep". A
            trained autoencoder keeps its own.
        prefix_loss: Whether nested dictionaries' losses are averaged or summed.
        precision: Of the product x W_enc in the forward pass alone; all else is float32: biases,
            losses, gradients, weights. With "bfloat16" a selection takes candidates from it and
            computes what it keeps again, in float32. Activations that decide entry by entry (ReLU,
            Gated, JumpReLU, GBA), and codes that unroll several steps, take the product as it is,
            with 8 bits; so do the counts that move GBA's biases.
        held_out: Share of the contexts on which the report is measured; 0: on training rows.
        threshold_rows: Training rows at most on which thresholds of batch-level codes are set when
            the training ends, so that rows alone keep k entries on average; 0: the running ones,
            which lag behind in short trainings, stay.
        checkpoint_every: Steps between checkpoints, where `fit` has a directory.
        dead_after: Tokens of silence after which a latent counts as dead; None: a tenth of the
            training, at most 10 million.
        seed: Of the order of rows and the choice of what is held out.

    Raises:
        InvalidValue: If a number is not allowed.

    Example:
        >>> training = SAETraining(steps=1000, batch=4096)
        >>> training.peak(d_sae=2**14), training.silence()
        (0.0002, 409600)

    Reference:
        Gao et al., 2024, arXiv 2406.04093, section 2 and appendix A.
    """

    steps: int = 5000
    batch: int = 4096
    micro_batch: int | None = None
    learning_rate: float | None = None
    warm_up: int | None = None
    decay: float = 0.2
    penalty_warm_up: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    clip: float | None = 1.0
    auxiliary: Auxiliary | Literal["auto"] | None = "auto"
    resample: Resampling | None = None
    scale_inputs: bool = True
    decoder: Literal["auto", "unit", "free"] = "auto"
    bias: Literal["median", "mean", "keep"] = "median"
    prefix_loss: Literal["mean", "sum"] = "mean"
    precision: Precision = "float32"
    held_out: float = 0.1
    threshold_rows: int = 131_072
    checkpoint_every: int = 1000
    dead_after: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        optional = ("warm_up", "dead_after", "micro_batch")
        for name in ("steps", "batch", "threshold_rows", "checkpoint_every", *optional):
            value = getattr(self, name)
            if value is None and name in optional:
                continue
            least = 0 if name in ("warm_up", "threshold_rows") else 1
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InvalidValue(
                    f"{name}={value!r} is not allowed: give a whole number of at least {least}"
                )
        for name in ("learning_rate", "clip", "epsilon"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InvalidValue(f"{name}={value!r} is not allowed: give a number above 0")
        if not (self.auxiliary in ("auto", None) or isinstance(self.auxiliary, Auxiliary)):
            raise InvalidValue(
                f"auxiliary={self.auxiliary!r} is not allowed: give AuxK(), another Auxiliary, "
                "'auto' or None"
            )
        for name, top in (("decay", 1), ("penalty_warm_up", 1), ("held_out", 0.9)):
            value = getattr(self, name)
            if not 0 <= value <= top:
                raise InvalidValue(f"{name}={value!r} is not allowed: give a share from 0 to {top}")
        choices: dict[str, tuple[str, ...]] = {
            "decoder": _DECODERS,
            "precision": PRECISIONS,
            "prefix_loss": _PREFIX_LOSSES,
            "bias": _BIASES,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise UnknownName(name, str(getattr(self, name)), allowed)

    def peak(self, d_sae: int) -> float:
        """Returns the learning rate at its peak for a dictionary of d_sae latents."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 2e-4 / math.sqrt(d_sae / 2**14)

    def rate(self, step: int, d_sae: int) -> float:
        """Returns the learning rate of a step, counted from 0."""
        warm_up = min(1000, self.steps // 20) if self.warm_up is None else self.warm_up
        falling = self.decay * self.steps
        rise = min(1.0, (step + 1) / warm_up) if warm_up else 1.0
        fall = min(1.0, (self.steps - step) / falling) if falling else 1.0
        return self.peak(d_sae) * min(rise, fall)

    def warmth(self, step: int) -> float:
        """Returns how far penalties have risen in a step, in [0, 1]."""
        steps = self.penalty_warm_up * self.steps
        return min(1.0, (step + 1) / steps) if steps else 1.0

    def auxiliary_of(self, activation: Activation) -> Auxiliary | None:
        """Returns the auxiliary loss that an activation is trained with."""
        if self.auxiliary != "auto":
            return self.auxiliary
        return AuxK() if isinstance(activation, Selecting) else None

    def unit_rows(self, transcoder: bool) -> bool:
        """Returns whether rows of the decoder keep norm one."""
        return self.decoder == "unit" or (self.decoder == "auto" and not transcoder)

    def silence(self) -> int:
        """Returns the tokens after which a silent latent is dead."""
        if self.dead_after is not None:
            return self.dead_after
        return max(1, min(10_000_000, self.steps * self.batch // 10))
