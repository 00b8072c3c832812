"""Llama Scope (OpenMOSS): `hyperparams.json` beside `checkpoints/final.safetensors`.

Autoencoders of inputs that are scaled to the norm sqrt(d_model), over the data set or row by row,
with codes that are compared times the norms of the decoder's rows (He et al., 2024, arXiv
2410.20526). The library that wrote them first takes the scales out of biases and decoder and then
makes the decoder's rows unit; `jump_relu_threshold` is meant for codes after both, that is, for raw
activations. A TopK that has such a threshold is a JumpReLU at inference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsecraft.core.errors import CheckpointError, InvalidValue
from sparsecraft.model.sae.autoencoder import RowNorm, SparseAutoencoder
from sparsecraft.model.sae.formats.inference_form import InferenceForm, Rule
from sparsecraft.model.sae.formats.tensors import (
    check_tensors,
    needed,
    read_json,
    read_safetensors,
    widened,
)

SETTINGS = "hyperparams.json"
WEIGHTS = ("sae_weights.safetensors", "checkpoints/pruned.safetensors",
           "checkpoints/final.safetensors")  # fmt: skip
_SCALED = "dataset-wise"
_NORMS: Mapping[str, RowNorm] = {
    _SCALED: "none",
    "token-wise": "unit",
    "none": "none",
    "inference": "none",
}


def recognises(path: Path) -> bool:
    """Returns whether a directory is of this format."""
    return (path / SETTINGS).is_file()


def read(path: Path, dtype: torch.dtype | None = None) -> SparseAutoencoder:
    """Returns the autoencoder of a directory.

    Raises:
        InvalidValue: For an encoder or a normalisation that has no equal here.
        CheckpointError: For files that are missing or damaged, or tensors that do not fit.
    """
    settings = read_json(path / SETTINGS)
    file = next((path / name for name in WEIGHTS if (path / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"{path} has no weights: one of {', '.join(WEIGHTS)} is needed")
    raw = read_safetensors(file)
    biased = settings.get("use_decoder_bias", True)
    names = ["encoder.weight", "encoder.bias", "decoder.weight"]
    check_tensors(raw, [*names, "decoder.bias"] if biased else names, file)
    form = _form(settings, widened(raw), path / SETTINGS)
    return form.autoencoder(dtype or raw["decoder.weight"].dtype)


def _form(settings: Mapping[str, Any], tensors: Mapping[str, Tensor], file: Path) -> InferenceForm:
    if settings.get("use_glu_encoder"):
        raise InvalidValue("its encoder is a gated linear unit (use_glu_encoder): no equal here")
    norm = settings.get("norm_activation", "token-wise")
    if norm not in _NORMS:
        raise InvalidValue(
            f"norm_activation={norm!r} has no equal here; known are {', '.join(_NORMS)}"
        )
    W_dec = tensors["decoder.weight"].T
    form = InferenceForm(
        rule="relu",
        W_enc=tensors["encoder.weight"].T,
        b_enc=tensors["encoder.bias"],
        W_dec=W_dec,
        b_dec=tensors.get("decoder.bias", W_dec.new_zeros(W_dec.shape[1])),
        subtract_bias=bool(settings.get("apply_decoder_bias_to_pre_encoder", True)),
        row_norm=_NORMS[norm],
        info=_info(settings),
    )
    form = _with_rule(form, settings, file)
    form.of_size(d_in=settings.get("d_model"), d_sae=settings.get("d_sae"))
    if norm == "token-wise":
        form = form.unscaled(form.d_in**0.5)
    if norm == _SCALED:
        form = _raw_units(form, needed(settings, "dataset_average_activation_norm", file))
    return form.with_unit_rows() if settings.get("sparsity_include_decoder_norm", True) else form


def _with_rule(form: InferenceForm, settings: Mapping[str, Any], file: Path) -> InferenceForm:
    function = str(settings.get("act_fn", "relu")).lower()
    cut = float(settings.get("jump_relu_threshold") or 0.0)
    rule: Rule | None = {"relu": "relu", "topk": "topk", "jumprelu": "jumprelu"}.get(function)  # type: ignore[assignment]
    if rule is None:
        raise InvalidValue(f"act_fn={function!r} has no equal here: relu, topk, jumprelu have")
    if rule == "jumprelu" or (rule == "topk" and cut > 0):
        threshold = torch.full((form.d_sae,), cut, dtype=form.b_enc.dtype)
        return replace(form, rule="jumprelu", threshold=threshold)
    if rule == "topk":
        return replace(form, rule="topk", k=int(needed(settings, "top_k", file)))
    return form


def _raw_units(form: InferenceForm, norms: Mapping[str, float]) -> InferenceForm:
    """Returns the form whose codes are in the units of raw activations.

    With inputs times s and outputs times t, u = s x W + b; the codes u / s of raw activations need
    b / s in the encoder and W_dec s / t in the decoder.
    """
    scale = form.d_in**0.5 / norms["in"]
    out = form.d_in**0.5 / norms.get("out", norms["in"])
    return replace(
        form,
        b_enc=form.b_enc / scale,
        W_dec=form.W_dec * (scale / out),
        b_dec=form.b_dec / out,
    )


def _info(settings: Mapping[str, Any]) -> dict[str, Any]:
    reads, writes = settings.get("hook_point_in"), settings.get("hook_point_out")
    info = {"hook": reads, "model": settings.get("model_name")}
    info |= {"hook_out": writes} if writes != reads else {}
    return {key: value for key, value in info.items() if value}
