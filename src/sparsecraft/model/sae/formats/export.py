"""From an autoencoder to what other libraries can say, or a refusal that says what to do."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.kinds import Elementwise, Selecting
from sparsecraft.model.sae.autoencoder import SparseAutoencoder
from sparsecraft.model.sae.formats.inference_form import InferenceForm, check_finite

_MIRROR = (
    "its codes are signed, and this format cuts off negative entries. Save the mirrored copy, "
    "rectified(sae) of sparsecraft.model.sae.rectified, with twice the latents and the same outputs"
)


@torch.no_grad()
def inference_form(sae: SparseAutoencoder) -> InferenceForm:
    """Returns what an autoencoder computes at inference; tied weights are written out.

    Raises:
        InvalidValue: If it is no single step of a rule that other libraries have.
    """
    if sae.unroll != 1:
        raise InvalidValue(
            f"its encoder makes unroll={sae.unroll} proximal steps, and other libraries make one: "
            "save it in the format sparsecraft, or train with unroll=1"
        )
    form = InferenceForm(
        rule="relu",
        W_enc=sae.encoder().detach().clone(),
        b_enc=sae.b_enc.detach().clone(),
        W_dec=sae.decoder_rows().detach().clone(),
        b_dec=sae.b_dec.detach().clone(),
        W_skip=None if sae.W_skip is None else sae.W_skip.detach().clone(),
        transcoder=sae.transcoder,
        subtract_bias=sae.subtract_bias,
        row_norm=sae.row_norm,
        prefixes=sae.prefixes,
        info=sae.info,
        notes=_notes(sae),
    )
    form = _with_rule(sae, form)
    check_finite(form)
    return form


def refuse_signed(form: InferenceForm) -> None:
    """Raises InvalidValue if codes have negative entries."""
    if form.rule == "abstopk":
        raise InvalidValue(f"{_MIRROR}; or save it as saelens, which has abstopk since 2026")


def refuse_normalised(form: InferenceForm) -> None:
    """Raises InvalidValue if rows are normalised, which only SAELens can say."""
    if form.row_norm != "none":
        raise InvalidValue(
            f"row_norm={form.row_norm!r} differs from row to row, so it cannot be folded into the "
            "weights: save it as saelens or sparsecraft"
        )


def _with_rule(sae: SparseAutoencoder, form: InferenceForm) -> InferenceForm:
    activation = sae.activation
    name = getattr(getattr(activation, "info", None), "name", "")
    if name in ("relu_sae", "attribution_sae"):  # what the latter adds is to the training
        return form
    if name == "gated_sae":
        own = {key: tensor.detach().clone() for key, tensor in sae.own.parameters.items()}
        return replace(
            form, rule="gated", log_scale=own["log_scale"], magnitude_bias=own["magnitude_bias"]
        )
    if name == "gba":
        return _gba(sae, form)
    if isinstance(activation, Selecting):
        return _selection(activation, sae, form)
    if isinstance(activation, Elementwise):
        threshold = activation.inference_threshold(sae.own)
        if threshold is not None:
            return replace(form, rule="jumprelu", threshold=_wide(threshold, sae))
    raise InvalidValue(
        f"{type(activation).__name__} is no ReLU, gate, threshold or TopK: save it in the format "
        "sparsecraft"
    )


def _selection(activation: Selecting, sae: SparseAutoencoder, form: InferenceForm) -> InferenceForm:
    penalty, k = activation.penalty(), getattr(activation, "k", None)
    if penalty.scope == "token" and k is not None:
        return replace(form, rule="abstopk" if activation.signed else "topk", k=int(k))
    if activation.signed:
        raise InvalidValue(_MIRROR)
    threshold = activation.inference_threshold(sae.own)
    if threshold is None:
        raise InvalidValue(
            f"{type(activation).__name__} has neither k for each row nor thresholds: save it in "
            "the format sparsecraft"
        )
    single = threshold.numel() == 1 and k is not None
    return replace(
        form,
        rule="jumprelu",
        threshold=_wide(threshold, sae),
        batch_k=int(k) if single else None,  # type: ignore[arg-type]
    )


def _gba(sae: SparseAutoencoder, form: InferenceForm) -> InferenceForm:
    """Returns GBA's rule: its bias decides only whether a latent fires, so it is a threshold."""
    if getattr(sae.activation, "form", "relu") == "relu":
        return form
    if bool((form.b_enc > 0).any()):
        raise InvalidValue(
            "its biases above zero let negative entries pass, which other formats cut off: save it "
            "in the format sparsecraft"
        )
    return replace(form, rule="jumprelu", threshold=-form.b_enc, b_enc=torch.zeros_like(form.b_enc))


def _notes(sae: SparseAutoencoder) -> tuple[str, ...]:
    notes = []
    if sae.activation.needs_gradient:
        notes.append(f"{type(sae.activation).__name__} is written as what it is without gradients")
    if sae.tied:
        notes.append("the tied encoder is written out as a matrix of its own")
    if sae.activation.moves_bias:
        notes.append("the controller of the biases is left out: it only acts in training")
    return tuple(notes)


def _wide(threshold: Tensor, sae: SparseAutoencoder) -> Tensor:
    """Returns thresholds (d_sae,)."""
    return threshold.detach().expand(sae.d_sae).clone()
