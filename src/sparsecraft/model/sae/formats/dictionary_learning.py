"""dictionary_learning (Marks and others): `ae.pt` beside `config.json`.

The class is in the config (`trainer.dict_class`), the tensors in a pickle of tensors alone, which
is opened so that it can run no code. AutoEncoder, GatedAutoEncoder, the TopK classes subtract their
bias from the input; AutoEncoderNew and JumpReluAutoEncoder do not. Of the classes that select over
batches the threshold is read; one that was never set (-1) would there let every positive entry
pass, and is unset here, so that encoding says what to do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue, UnknownName
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
    read_pickled,
    widened,
)

SETTINGS = "config.json"
WEIGHTS = "ae.pt"
_LINEAR = ("encoder.weight", "encoder.bias", "decoder.weight")
_MATRICES = ("W_enc", "b_enc", "W_dec", "b_dec")
TENSORS: Mapping[str, tuple[str, ...]] = {
    "AutoEncoder": (*_LINEAR, "bias"),
    "AutoEncoderNew": (*_LINEAR, "decoder.bias"),
    "GatedAutoEncoder": (
        "encoder.weight", "decoder.weight", "decoder_bias", "r_mag", "gate_bias", "mag_bias",
    ),
    "JumpReluAutoEncoder": (*_MATRICES, "threshold"),
    "AutoEncoderTopK": (*_LINEAR, "b_dec"),
    "BatchTopKSAE": (*_LINEAR, "b_dec", "k", "threshold"),
    "MatryoshkaBatchTopKSAE": (*_MATRICES, "k", "threshold", "group_sizes"),
}  # fmt: skip
"""The tensors of each class."""
_TRAINERS = {
    "AutoEncoder": "StandardTrainer",
    "GatedAutoEncoder": "GatedSAETrainer",
    "JumpReluAutoEncoder": "JumpReluTrainer",
    "AutoEncoderTopK": "TopKTrainer",
    "BatchTopKSAE": "BatchTopKTrainer",
    "MatryoshkaBatchTopKSAE": "MatryoshkaBatchTopKTrainer",
}
_NO_SUBTRACTION = ("AutoEncoderNew", "JumpReluAutoEncoder")


def recognises(path: Path) -> bool:
    """Returns whether a directory, or the `ae.pt` in one, is of this format."""
    return (path / WEIGHTS).is_file() or (path.name == WEIGHTS and path.is_file())


def read(path: Path, dtype: torch.dtype | None = None) -> SparseAutoencoder:
    """Returns the autoencoder of a directory.

    Raises:
        UnknownName: For a class that has no equal here.
        CheckpointError: For files that are missing or damaged, or tensors that do not fit.
    """
    path = path.parent if path.is_file() else path
    file = path / SETTINGS
    # Without the config a TopK cannot be told from a ReLU.
    config = read_json(file)
    trainer = needed(config, "trainer", file)
    name = needed(trainer, "dict_class", file)
    if name not in TENSORS:
        raise UnknownName("class of dictionary_learning", str(name), TENSORS)
    raw = read_pickled(path / WEIGHTS)
    # Releases before 2025 kept k in the config alone.
    optional = ("k", "threshold") if name == "AutoEncoderTopK" else ()
    check_tensors(raw, TENSORS[name], path / WEIGHTS, optional=optional)
    form = _form(name, widened(raw), trainer)
    form.of_size(d_in=trainer.get("activation_dim"), d_sae=trainer.get("dict_size"))
    saved = raw.get("encoder.weight", raw.get("W_enc"))
    return _with_info(form, config).autoencoder(dtype or saved.dtype)  # type: ignore[union-attr]


def write(sae: SparseAutoencoder, folder: Path) -> tuple[str, ...]:
    """Writes what the autoencoder computes, and returns what this format does not say.

    Raises:
        InvalidValue: If it is a transcoder, has signed codes, or normalises rows.
    """
    form = inference_form(sae)
    refuse_signed(form)
    refuse_normalised(form)
    if form.transcodes or form.W_skip is not None:
        raise InvalidValue(
            "dictionary_learning has no transcoders of this kind: save it as saelens or sparsify"
        )
    name = _class(form)
    form = form.subtracting(name not in _NO_SUBTRACTION)
    ready = {key: value.detach().cpu().contiguous() for key, value in _tensors(name, form).items()}
    torch.save(ready, folder / WEIGHTS)
    (folder / SETTINGS).write_text(json.dumps(_config(name, form)), encoding="utf-8")
    lost = bool(form.prefixes) and name != "MatryoshkaBatchTopKSAE"
    nested = ("the nested dictionaries are only in our own format",) if lost else ()
    return (*form.notes, *nested)


def _form(name: str, tensors: Mapping[str, Tensor], trainer: Mapping[str, Any]) -> InferenceForm:
    linear = "encoder.weight" in tensors
    W_enc = tensors["encoder.weight"].T if linear else tensors["W_enc"]
    bias = next(tensors[key] for key in ("b_dec", "bias", "decoder.bias", "decoder_bias")
                if key in tensors)  # fmt: skip
    b_enc = next(tensors[key] for key in ("encoder.bias", "b_enc", "gate_bias") if key in tensors)
    common: dict[str, Any] = {
        "W_enc": W_enc,
        "b_enc": b_enc,
        "W_dec": tensors["decoder.weight"].T if linear else tensors["W_dec"],
        "b_dec": bias,
        "subtract_bias": name not in _NO_SUBTRACTION,
    }
    if name == "GatedAutoEncoder":
        return InferenceForm(
            rule="gated",
            log_scale=tensors["r_mag"],
            magnitude_bias=tensors["mag_bias"],
            **common,
        )
    if name == "JumpReluAutoEncoder":
        return InferenceForm(rule="jumprelu", threshold=tensors["threshold"], **common)
    if name == "AutoEncoderTopK":
        return InferenceForm(rule="topk", k=_k(tensors, trainer), **common)
    if name in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        return _over_batches(tensors, trainer, common)
    return InferenceForm(rule="relu", **common)


def _over_batches(
    tensors: Mapping[str, Tensor], trainer: Mapping[str, Any], common: Mapping[str, Any]
) -> InferenceForm:
    threshold = tensors["threshold"].reshape(1).float()
    threshold = torch.where(threshold < 0, torch.nan, threshold)
    prefixes: tuple[int, ...] = ()
    if "group_sizes" in tensors:
        prefixes = tuple(tensors["group_sizes"].cumsum(0).tolist())
    return InferenceForm(
        rule="jumprelu",
        threshold=threshold.expand(len(common["b_enc"])),
        batch_k=_k(tensors, trainer),
        prefixes=prefixes,
        **common,
    )


def _k(tensors: Mapping[str, Tensor], trainer: Mapping[str, Any]) -> int:
    """Returns k, which the tensors and the config must agree on."""
    said = [int(tensors["k"])] if "k" in tensors else []
    said += [int(trainer["k"])] if trainer.get("k") is not None else []
    if not said:
        raise InvalidValue("neither its config nor its tensors say k, and a TopK needs it")
    if len(set(said)) > 1:
        raise InvalidValue(
            f"its tensors say k={said[0]} and its config k={said[1]}: files of two autoencoders "
            "were mixed, or one was edited"
        )
    return said[0]


def _with_info(form: InferenceForm, config: Mapping[str, Any]) -> InferenceForm:
    trainer, buffer = config["trainer"], config.get("buffer") or {}
    info = dict(config.get("info") or {})
    layer, module = trainer.get("layer"), trainer.get("submodule_name")
    if layer is not None and "hook" not in info:
        part = {"attn": "hook_attn_out", "mlp": "hook_mlp_out"}
        found = next((hook for key, hook in part.items() if key in str(module or "")), None)
        info["hook"] = f"blocks.{layer}.{found or 'hook_resid_post'}"
    if trainer.get("lm_name"):
        info.setdefault("model", trainer["lm_name"])
    if buffer.get("ctx_len"):
        info.setdefault("context", buffer["ctx_len"])
    kept = {key: value for key, value in trainer.items() if value is not None}
    return replace(form, info={**info, "dictionary_learning": {"trainer": kept}})


def _class(form: InferenceForm) -> str:
    if form.rule == "jumprelu" and form.batch_k is not None:
        return "MatryoshkaBatchTopKSAE" if form.prefixes else "BatchTopKSAE"
    return {
        "relu": "AutoEncoder",
        "gated": "GatedAutoEncoder",
        "jumprelu": "JumpReluAutoEncoder",
        "topk": "AutoEncoderTopK",
    }[form.rule]


def _tensors(name: str, form: InferenceForm) -> dict[str, Tensor]:
    linear = {
        "encoder.weight": form.W_enc.T,
        "encoder.bias": form.b_enc,
        "decoder.weight": form.W_dec.T,
    }
    matrices = {key: getattr(form, key) for key in _MATRICES}
    if name == "AutoEncoder":
        return {**linear, "bias": form.b_dec}
    if name == "GatedAutoEncoder":
        assert form.log_scale is not None and form.magnitude_bias is not None
        del linear["encoder.bias"]
        own = {"r_mag": form.log_scale, "gate_bias": form.b_enc, "mag_bias": form.magnitude_bias}
        return {**linear, "decoder_bias": form.b_dec, **own}
    if name == "JumpReluAutoEncoder":
        assert form.threshold is not None
        return {**matrices, "threshold": form.threshold}
    if form.threshold is None:
        counts = {"k": torch.tensor(form.k, dtype=torch.int32), "threshold": torch.tensor(-1.0)}
        return {**linear, "b_dec": form.b_dec, **counts}
    counts = {"k": torch.tensor(form.batch_k, dtype=torch.int32), "threshold": form.threshold[0]}
    if name == "BatchTopKSAE":
        return {**linear, "b_dec": form.b_dec, **counts}
    sizes = torch.tensor([0, *form.prefixes]).diff()
    return {**matrices, **counts, "group_sizes": sizes}


def _config(name: str, form: InferenceForm) -> dict[str, Any]:
    kept = dict(form.info.get("dictionary_learning", {}).get("trainer", {}))
    hook = str(form.info.get("hook") or "")
    layer = re.search(r"\d+", hook)
    k = form.k if form.batch_k is None else form.batch_k
    trainer = {
        **kept,
        "trainer_class": kept.get("trainer_class", _TRAINERS[name]),
        "dict_class": name,
        "activation_dim": form.d_in,
        "dict_size": form.d_sae,
        "layer": int(layer.group()) if layer else kept.get("layer", 0),
        "lm_name": str(form.info.get("model") or ""),
        "submodule_name": kept.get("submodule_name", hook or None),
        "device": "cpu",
    }
    trainer |= {} if k is None else {"k": k}
    trainer |= {"group_sizes": torch.tensor([0, *form.prefixes]).diff().tolist()} if (
        name == "MatryoshkaBatchTopKSAE"
    ) else {}  # fmt: skip
    info = {key: value for key, value in form.info.items() if key != "dictionary_learning"}
    return {
        "trainer": trainer,
        "buffer": {"d_submodule": form.d_in, "io": "out", "ctx_len": form.info.get("context")},
        "info": info,
    }
