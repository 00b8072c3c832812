"""SAELens: `cfg.json` beside `sae_weights.safetensors`.

Written is the layout of release 6; read are releases 3 to 6, and what each architecture does on the
way is folded into the weights: decoder norms in a selection, one scalar for all inputs, fine-tuned
scales. Releases before 6 put everything at the top level of the settings, and say of a TopK only by
`activation_fn`, which later loaders have read as a ReLU.

A selection over batches is saved there as thresholds. Where the metadata say that it was one, it is
read as one again (`BatchTopK`), so that it can be trained on; codes at inference are the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue
from sparsecraft.model.sae.autoencoder import SparseAutoencoder
from sparsecraft.model.sae.formats.export import inference_form
from sparsecraft.model.sae.formats.inference_form import InferenceForm, batch_rule
from sparsecraft.model.sae.formats.saelens_metadata import origin_of, reads_heads
from sparsecraft.model.sae.formats.saelens_settings import RULES, Settings, settings_of
from sparsecraft.model.sae.formats.tensors import (
    check_tensors,
    read_json,
    read_safetensors,
    widened,
    write_safetensors,
)

SETTINGS = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
LAYOUT = "6.54.12"
"""The release whose layout is written; older ones of release 6 read it too."""
_NORMS = {"none": "none", "unit": "constant_norm_rescale", "layer": "layer_norm"}
_EXTRA = {
    "jumprelu": ("threshold",),
    "gated": ("b_gate", "b_mag", "r_mag"),
    "batchtopk": ("topk_threshold",),
}


def recognises(path: Path) -> bool:
    """Returns whether a directory is of this format."""
    return (path / SETTINGS).is_file() and (path / WEIGHTS).is_file()


def read(
    path: Path, dtype: torch.dtype | None = None, *, activation_scale: float | None = None
) -> SparseAutoencoder:
    """Returns the autoencoder of a directory.

    Args:
        path: The directory.
        dtype: Of the weights; as saved by default.
        activation_scale: What activations were multiplied by in training, where the settings have
            `normalize_activations` "expected_average_only_in" and no file holds the number.

    Raises:
        InvalidValue: For an architecture or option that has no equal here, or a scale that is
            missing.
        CheckpointError: For files that are missing or damaged, or tensors that do not fit.
    """
    settings = settings_of(read_json(path / SETTINGS))
    tensors = read_safetensors(path / WEIGHTS)
    _check_keys(settings, tensors, path / WEIGHTS)
    form = _form(settings, widened(tensors))
    scale = _scale(settings, path, activation_scale)
    return form.unscaled(scale).autoencoder(dtype or tensors["W_dec"].dtype)


def write(sae: SparseAutoencoder, folder: Path) -> tuple[str, ...]:
    """Writes what the autoencoder computes, and returns what this format does not say.

    Raises:
        InvalidValue: If SAELens has no such architecture.
    """
    form = inference_form(sae)
    architecture = _architecture(form)
    if _maps(form):
        form = form.subtracting(False)
    if form.row_norm == "unit":
        # There rows are scaled to the norm sqrt(d_in), not 1.
        form = form.unscaled(form.d_in**-0.5)
    write_safetensors(_tensors(form), folder / WEIGHTS)
    origin, notes = origin_of(form.info)
    settings = _settings(form, architecture, origin)
    (folder / SETTINGS).write_text(json.dumps(settings), encoding="utf-8")
    return (*form.notes, *notes)


def _check_keys(settings: Settings, tensors: Mapping[str, Tensor], path: Path) -> None:
    needed = ["W_enc", "W_dec", "b_dec"]
    needed += [] if settings.rule == "gated" else ["b_enc"]
    needed += _EXTRA.get("batchtopk" if settings.trains_over_batches else settings.rule, ())
    needed += ["W_skip"] if settings.skip else []
    check_tensors(tensors, needed, path, optional=("scaling_factor",))


def _form(settings: Settings, tensors: dict[str, Tensor]) -> InferenceForm:
    """Returns what the file computes on scaled inputs, with its own folds done."""
    W_dec = _finetuned(settings, tensors)
    threshold = tensors.get("threshold")
    if settings.trains_over_batches:
        threshold = tensors["topk_threshold"].expand(len(W_dec)).to(torch.float32)
    over_batches = settings.trained_over_batches and threshold is not None
    batch_k = batch_rule(threshold, settings.k) if over_batches else None  # type: ignore[arg-type]
    form = InferenceForm(
        rule=settings.rule,
        W_enc=tensors["W_enc"],
        b_enc=tensors["b_gate" if settings.rule == "gated" else "b_enc"],
        W_dec=W_dec,
        b_dec=tensors["b_dec"],
        k=settings.whole_k() if settings.rule in ("topk", "abstopk") else None,
        threshold=threshold,
        batch_k=batch_k,
        log_scale=tensors.get("r_mag"),
        magnitude_bias=tensors.get("b_mag"),
        W_skip=tensors["W_skip"].T if settings.skip else None,
        transcoder=settings.transcoder,
        subtract_bias=settings.subtract_bias,
        row_norm=settings.row_norm,
        prefixes=settings.prefixes,
        info=settings.info,
    )
    said = {name: settings.values.get(name) for name in ("d_in", "d_sae", "d_out")}
    form.of_size(**said)
    return form.with_unit_rows() if settings.rescaled else form


def _finetuned(settings: Settings, tensors: dict[str, Tensor]) -> Tensor:
    """Returns W_dec with the scales that were fine-tuned on top of the codes, if there are any."""
    scales = tensors.get("scaling_factor")
    if scales is None or bool((scales == 1).all()):
        return tensors["W_dec"]
    if not settings.finetuned:
        raise InvalidValue(
            "its weights have a scaling_factor other than one, and its settings do not say "
            "finetuning_scaling_factor, so whether it counts is not known"
        )
    return tensors["W_dec"] * scales[:, None]


def _scale(settings: Settings, path: Path, given: float | None) -> float:
    """Returns what the file's inputs are multiplied by."""
    if not settings.scaled:
        if given is not None:
            raise InvalidValue(
                f"activation_scale={given} was given, but its settings say that activations are "
                "not scaled (normalize_activations). Leave it out."
            )
        return settings.row_scale
    beside = path / "activation_scaler.json"
    if given is None and beside.is_file():
        given = read_json(beside).get("scaling_factor")
    if given is None or not given > 0:
        raise InvalidValue(
            "it was trained on activations times one scalar (normalize_activations: "
            "expected_average_only_in), and the scalar is not in the files. Give it as "
            "activation_scale=sqrt(d_in) / (mean norm of the activations): store.scale() of an "
            "ActivationStore of the same place gives it."
        )
    return float(given)


def _maps(form: InferenceForm) -> bool:
    """Returns whether SAELens has this among its transcoders: only these have a skip."""
    return form.transcodes or form.W_skip is not None


def _architecture(form: InferenceForm) -> str:
    """Returns the name that SAELens has for this."""
    name = next(name for name, rule in RULES.items() if rule == form.rule)
    if not _maps(form):
        return name
    if form.rule not in ("relu", "jumprelu"):
        raise InvalidValue(
            f"its transcoders know ReLU and JumpReLU, and this one is {form.rule}. sparsify has "
            "transcoders with TopK; sparsecraft holds them all."
        )
    if form.row_norm != "none":
        raise InvalidValue(
            f"its transcoders do not undo row_norm={form.row_norm!r}: save it as sparsecraft"
        )
    prefix = "jumprelu_" if form.rule == "jumprelu" else ""
    return f"{prefix}{'skip_' if form.W_skip is not None else ''}transcoder"


def _tensors(form: InferenceForm) -> dict[str, Tensor]:
    found = {"W_enc": form.W_enc, "W_dec": form.W_dec, "b_dec": form.b_dec}
    if form.rule == "gated":
        assert form.log_scale is not None and form.magnitude_bias is not None
        found |= {"b_gate": form.b_enc, "r_mag": form.log_scale, "b_mag": form.magnitude_bias}
    else:
        found["b_enc"] = form.b_enc
    if form.threshold is not None:
        found["threshold"] = form.threshold
    if form.W_skip is not None:
        found["W_skip"] = form.W_skip.T
    return {name: tensor.to(form.W_dec.dtype) for name, tensor in found.items()}


def _settings(form: InferenceForm, architecture: str, origin: Mapping[str, Any]) -> dict[str, Any]:
    settings = {
        "architecture": architecture,
        "d_in": form.d_in,
        "d_sae": form.d_sae,
        "dtype": str(form.W_dec.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": form.subtract_bias,
        "normalize_activations": _NORMS[form.row_norm],
        "reshape_activations": "hook_z" if reads_heads(origin) else "none",
        "metadata": {**origin, **_training(form, architecture, origin)},
    }
    if _maps(form):
        settings["d_out"] = form.d_out
    if form.k is not None:
        unit = bool(((form.W_dec.norm(dim=1) - 1).abs() < 1e-5).all())
        # With rows of norm one both values mean the same; True lets SAELens fold norms later.
        settings |= {"k": form.k, "rescale_acts_by_decoder_norm": unit}
    return settings


def _training(form: InferenceForm, architecture: str, kept: Mapping[str, Any]) -> dict[str, Any]:
    trained, details = architecture, dict(kept.get("training_architecture_details") or {})
    if form.batch_k is not None:
        trained = "matryoshka_batchtopk" if form.prefixes else "batchtopk"
        details = {"rescale_acts_by_decoder_norm": False, **details, "k": form.batch_k}
    if form.prefixes:
        details["matryoshka_widths"] = list(form.prefixes)
    return {
        "sae_lens_version": LAYOUT,
        "sae_lens_training_version": kept.get("sae_lens_training_version"),
        "training_architecture": trained,
        "training_architecture_details": details,
    }
