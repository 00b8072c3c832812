"""What an autoencoder computes at inference, in the few words that all libraries share.

Five rules cover what other libraries save: ReLU, gates, thresholds (JumpReLU), and the k largest
values or magnitudes of a row. Readers fill an `InferenceForm` and fold into it what their library
does on the way (input scales, decoder norms, biases); writers take one from an autoencoder and fold
it into the convention of their library. A fold changes numbers by rounding alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor

from sparsecraft.core import catalog
from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.kinds import Activation
from sparsecraft.model.sae.autoencoder import RowNorm, SparseAutoencoder

Rule = Literal["relu", "gated", "jumprelu", "topk", "abstopk"]


@dataclass(frozen=True, eq=False, kw_only=True)
class InferenceForm:
    """An autoencoder as others can say it.

    Args:
        rule: How u = (x - b_dec) W_enc + b_enc becomes a code.
        W_enc: (d_in, d_sae).
        b_enc: (d_sae,); of the gates, if gated.
        W_dec: (d_sae, d_out).
        b_dec: (d_out,).
        k: Entries that a row keeps, of topk and abstopk.
        threshold: (d_sae,), of jumprelu: u is kept where it exceeds this.
        batch_k: Of a selection over batches that the thresholds stand for, entries of a row on
            average; None where thresholds were learned.
        log_scale: (d_sae,), of gated: the magnitudes' scale is its exponential.
        magnitude_bias: (d_sae,), of gated.
        W_skip: (d_in, d_out), or None.
        transcoder: Whether another tensor than the input is reconstructed; None: where widths
            differ, or there is a skip, or `info` says another place.
        subtract_bias: Whether b_dec is subtracted from the input.
        row_norm: What is done to each row before, and undone after.
        prefixes: Of nested dictionaries.
        info: Where the activations came from.
        notes: What is not said by this form, in sentences for the user.
    """

    rule: Rule
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    k: int | None = None
    threshold: Tensor | None = None
    batch_k: int | None = None
    log_scale: Tensor | None = None
    magnitude_bias: Tensor | None = None
    W_skip: Tensor | None = None
    transcoder: bool | None = None
    subtract_bias: bool = True
    row_norm: RowNorm = "none"
    prefixes: tuple[int, ...] = ()
    info: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.W_enc.dim() != 2 or self.W_dec.dim() != 2:
            shapes = f"{tuple(self.W_enc.shape)} and {tuple(self.W_dec.shape)}"
            raise InvalidValue(f"W_enc and W_dec have the shapes {shapes}; matrices are needed")
        latents = ("b_enc", "threshold", "log_scale", "magnitude_bias")
        wanted: dict[str, tuple[int, ...]] = {
            **dict.fromkeys(latents, (self.d_sae,)),
            "b_dec": (self.d_out,),
            "W_dec": (self.d_sae, self.d_out),
            "W_skip": (self.d_in, self.d_out),
        }
        for name, shape in wanted.items():
            tensor = getattr(self, name)
            if tensor is not None and tuple(tensor.shape) != shape:
                raise InvalidValue(
                    f"its {name} has the shape {tuple(tensor.shape)}, and with an encoder of "
                    f"{self.d_in} entries and {self.d_sae} latents {shape} is needed"
                )

    def of_size(self, **sizes: Any) -> InferenceForm:
        """Returns this form if it has the sizes that settings say; None says nothing.

        Raises:
            InvalidValue: If it has others.
        """
        for name, said in sizes.items():
            if said is not None and int(said) != getattr(self, name):
                raise InvalidValue(
                    f"its settings say {name}={said}, and its tensors {getattr(self, name)}: files "
                    "of two autoencoders were mixed"
                )
        return self

    @property
    def d_in(self) -> int:
        """Width of what is read."""
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        """Latents."""
        return self.W_enc.shape[1]

    @property
    def d_out(self) -> int:
        """Width of what is written."""
        return self.W_dec.shape[1]

    @property
    def transcodes(self) -> bool:
        """Whether another tensor than the input is reconstructed, as far as one can see."""
        if self.transcoder is not None:
            return self.transcoder
        return self.d_in != self.d_out or self.W_skip is not None or bool(self.info.get("hook_out"))

    def unscaled(self, scale: float, out_scale: float | None = None) -> InferenceForm:
        """Returns the form that reads x and writes y, of one that reads scale x, writes scale y.

        Args:
            scale: What inputs were multiplied by, above 0.
            out_scale: What outputs were multiplied by, if something else.
        """
        out = scale if out_scale is None else out_scale
        if scale == out == 1:
            return self
        return replace(
            self,
            W_enc=self.W_enc * scale,
            W_dec=self.W_dec / out,
            b_dec=self.b_dec / out,
            W_skip=None if self.W_skip is None else self.W_skip * (scale / out),
        )

    def with_unit_rows(self) -> InferenceForm:
        """Returns the same function with decoder rows of norm one; codes grow by the norms.

        Selections then compare values times decoder norms, so this is for files that mean that.
        """
        # A latent without a direction writes nothing, whatever its scale.
        norms = self.W_dec.norm(dim=1).clamp_min(1e-8)
        if bool(((norms - 1).abs() <= 8 * torch.finfo(norms.dtype).eps).all()):
            return self
        return replace(
            self,
            W_enc=self.W_enc * norms,
            b_enc=self.b_enc * norms,
            W_dec=self.W_dec / norms[:, None],
            magnitude_bias=None if self.magnitude_bias is None else self.magnitude_bias * norms,
        )

    def subtracting(self, subtract: bool) -> InferenceForm:
        """Returns the same function with b_dec subtracted from the input, or not."""
        if subtract == self.subtract_bias:
            return self
        moved = self.b_dec @ self.W_enc if subtract else -(self.b_dec @ self.W_enc)
        magnitude = self.magnitude_bias
        if magnitude is not None:
            magnitude = magnitude + moved * cast(Tensor, self.log_scale).exp()
        return replace(
            self, b_enc=self.b_enc + moved, magnitude_bias=magnitude, subtract_bias=subtract
        )

    def autoencoder(self, dtype: torch.dtype | None = None) -> SparseAutoencoder:
        """Returns the module, in evaluation mode.

        Args:
            dtype: Of the weights; as they are if None.

        Raises:
            InvalidValue: If sizes or settings do not suit each other.
        """
        from sparsecraft.model.sae.files import filled, skeleton

        options = {
            "transcoder": self.transcodes,
            "skip": self.W_skip is not None,
            "row_norm": self.row_norm,
            "prefixes": self.prefixes,
            "subtract_bias": self.subtract_bias,
        }
        activation = self._activation()
        sae = skeleton(self.d_in, self.d_sae, activation, d_out=self.d_out, **options)
        names = ("W_enc", "b_enc", "W_dec", "b_dec", "W_skip")
        state = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        filled(sae, {**state, **self._own()}, dtype or self.W_dec.dtype)
        sae.info = dict(self.info)
        return sae

    def _activation(self) -> Activation:
        names = {"relu": "relu_sae", "gated": "gated_sae", "topk": "topk_sae"}
        if self.batch_k is not None:
            return cast(Activation, catalog.build("batch_topk", k=self.batch_k))
        options = {} if self.k is None else {"k": self.k}
        return cast(Activation, catalog.build(names.get(self.rule, self.rule), **options))

    def _own(self) -> dict[str, Tensor]:
        """Returns what the activation trains and remembers, under the module's names."""
        if self.rule == "gated":
            scale, bias = cast(Tensor, self.log_scale), cast(Tensor, self.magnitude_bias)
            return {"own_log_scale": scale, "own_magnitude_bias": bias}
        if self.threshold is None:
            return {}
        if self.batch_k is not None:
            return {"own_threshold": self.threshold[:1]}
        return {"own_log_threshold": log_of(self.threshold.to(self.W_dec.dtype))}


def log_of(threshold: Tensor) -> Tensor:
    """Returns logarithms whose exponentials are the thresholds, or an ulp or two below.

    Below, because an entry that a threshold just lets pass must not be lost to rounding.

    Example:
        >>> theta = torch.tensor([0.3, 0.01])
        >>> bool((log_of(theta).exp() <= theta).all())
        True
    """
    theta = threshold.to(torch.promote_types(threshold.dtype, torch.float32))
    # Negative thresholds let pass what a threshold of zero does: codes are not negative.
    theta = theta.clamp_min(torch.finfo(theta.dtype).tiny)
    found = theta.double().log().to(theta.dtype)
    for _ in range(2):
        above = found.exp() > theta
        found = torch.where(above, found.nextafter(torch.full_like(found, -torch.inf)), found)
    return found


def batch_rule(threshold: Tensor, k: float | None) -> int | None:
    """Returns k if one threshold for all latents stands for a selection over batches, else None."""
    whole = k is not None and float(k).is_integer() and k >= 1
    return int(k) if whole and bool((threshold == threshold[:1]).all()) else None  # type: ignore[arg-type]


def check_finite(form: InferenceForm) -> None:
    """Raises InvalidValue if a threshold is unset or negative, so that no format can hold it."""
    if form.threshold is None:
        return
    if bool(torch.isnan(form.threshold).any()):
        raise InvalidValue(
            "its thresholds for rows that come alone were never calibrated, and no other format "
            "can hold a selection over batches: call freeze_thresholds(activations) first"
        )
    if bool((form.threshold < 0).any()):
        raise InvalidValue(
            "thresholds below zero let negative entries pass, which other formats cut off: save it "
            "in the format sparsecraft"
        )
