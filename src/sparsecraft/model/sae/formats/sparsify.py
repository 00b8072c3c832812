"""sparsify (EleutherAI): `cfg.json` beside `sae.safetensors`, one folder for each hookpoint.

A TopK autoencoder or transcoder, with or without a skip connection. `multi_topk` only adds a loss
in training; its forward pass then returns what 4 k latents give, while the code here is of k.
Autoencoders subtract b_dec from the input, transcoders do not. The folder is named after the
hookpoint; model and context stand in a `config.json` beside the folders. What we write has them in
a file of its own, `sparsecraft_info.json`, which sparsify does not look for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from sparsecraft.core.errors import InvalidValue
from sparsecraft.model.sae.autoencoder import SparseAutoencoder
from sparsecraft.model.sae.formats.export import (
    inference_form,
    refuse_normalised,
    refuse_signed,
)
from sparsecraft.model.sae.formats.inference_form import InferenceForm
from sparsecraft.model.sae.formats.tensors import (
    check_tensors,
    needed,
    read_json,
    read_safetensors,
    widened,
    write_safetensors,
)

SETTINGS = "cfg.json"
WEIGHTS = "sae.safetensors"
INFO = "sparsecraft_info.json"


def recognises(path: Path) -> bool:
    """Returns whether a directory is of this format."""
    return (path / SETTINGS).is_file() and (path / WEIGHTS).is_file()


def read(path: Path, dtype: torch.dtype | None = None) -> SparseAutoencoder:
    """Returns the autoencoder of a directory.

    Raises:
        InvalidValue: For an activation other than topk.
        CheckpointError: For files that are missing or damaged, or tensors that do not fit.
    """
    file = path / SETTINGS
    settings = read_json(file)
    activation = settings.get("activation", "topk")
    if activation != "topk":
        raise InvalidValue(
            f"its activation is {activation!r}; of sparsify only topk has an equal here, and "
            "another rule in its place would give other codes"
        )
    skip, transcode = settings.get("skip_connection", False), settings.get("transcode", False)
    names = ["encoder.weight", "encoder.bias", "W_dec", "b_dec", *(["W_skip"] if skip else [])]
    raw = read_safetensors(path / WEIGHTS)
    check_tensors(raw, names, path / WEIGHTS)
    tensors = widened(raw)
    form = InferenceForm(
        # The first releases could rank by magnitude and keep signs.
        rule="abstopk" if settings.get("signed") else "topk",
        W_enc=tensors["encoder.weight"].T,
        b_enc=tensors["encoder.bias"],
        W_dec=tensors["W_dec"],
        b_dec=tensors["b_dec"],
        k=int(needed(settings, "k", file)),
        W_skip=tensors["W_skip"].T if skip else None,
        transcoder=bool(transcode),
        subtract_bias=not transcode,
        info=_info(settings, path),
    )
    # num_latents is 0 where the expansion factor says it.
    form.of_size(d_in=settings.get("d_in"), d_sae=settings.get("num_latents") or None)
    return form.autoencoder(dtype or raw["W_dec"].dtype)


def write(sae: SparseAutoencoder, folder: Path) -> tuple[str, ...]:
    """Writes what the autoencoder computes, and returns what this format does not say.

    Raises:
        InvalidValue: If it is no TopK, or normalises rows, or writes another width.
    """
    form = inference_form(sae)
    _refuse(form)
    form = form.subtracting(not form.transcodes)
    tensors = {
        "encoder.weight": form.W_enc.T,
        "encoder.bias": form.b_enc,
        "W_dec": form.W_dec,
        "b_dec": form.b_dec,
    }
    if form.W_skip is not None:
        tensors["W_skip"] = form.W_skip.T
    write_safetensors(tensors, folder / WEIGHTS)
    settings = {
        "activation": "topk",
        "expansion_factor": max(1, form.d_sae // form.d_in),
        "normalize_decoder": bool(((form.W_dec.norm(dim=1) - 1).abs() < 1e-5).all()),
        "num_latents": form.d_sae,
        "k": form.k,
        "multi_topk": False,
        "skip_connection": form.W_skip is not None,
        "transcode": form.transcodes,
        "d_in": form.d_in,
    }
    (folder / SETTINGS).write_text(json.dumps(settings), encoding="utf-8")
    (folder / INFO).write_text(json.dumps(dict(form.info)), encoding="utf-8")
    nested = ("the nested dictionaries are only in our own format",) if form.prefixes else ()
    return (*form.notes, *nested)


def _refuse(form: InferenceForm) -> None:
    refuse_signed(form)
    refuse_normalised(form)
    if form.rule != "topk":
        instead = (
            "batch-level selections and thresholds are for saelens and dictionary_learning"
            if form.rule == "jumprelu"
            else "save it as saelens or dictionary_learning"
        )
        raise InvalidValue(f"sparsify has only TopK, and this is {form.rule}: {instead}")
    if form.d_in != form.d_out:
        raise InvalidValue(
            f"sparsify reads and writes the same width, and this reads {form.d_in} and writes "
            f"{form.d_out}: save it as sparsecraft"
        )


def _info(settings: dict[str, Any], path: Path) -> dict[str, Any]:
    if (path / INFO).is_file():
        return read_json(path / INFO)
    info: dict[str, Any] = {"hook": path.name}
    beside = path.parent / "config.json"
    if beside.is_file():
        run = read_json(beside)
        named = {"model": "model", "context": "ctx_len", "dataset": "dataset"}
        info |= {ours: run[theirs] for ours, theirs in named.items() if run.get(theirs)}
    if settings.get("transcode"):
        info |= {"hook": f"{path.name}.input", "hook_out": f"{path.name}.output"}
    return info
