"""Gemma Scope (Google DeepMind): `params.npz`, or `params.safetensors` of Gemma Scope 2.

JumpReLU autoencoders and transcoders whose bias is not subtracted from the input (Lieberum et al.,
2024, arXiv 2408.05147). The files say nothing of model and place; where the path does, as in the
repositories (`.../layer_20/width_16k/...`), it is kept as the hook.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from sparsecraft.model.sae.autoencoder import SparseAutoencoder
from sparsecraft.model.sae.formats.inference_form import InferenceForm
from sparsecraft.model.sae.formats.tensors import (
    check_tensors,
    read_arrays,
    read_json,
    read_safetensors,
    widened,
)

WEIGHTS = ("params.npz", "params.safetensors")
_NAMES = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
_SKIP = "affine_skip_connection"
_PARTS = {
    "-mlp": "hook_mlp_out",
    "-att": "attn.hook_z",
    "resid_post": "hook_resid_post",
    "mlp_out": "hook_mlp_out",
    "attn_out": "attn.hook_z",
    "transcoder": "ln2.hook_normalized",
}


def recognises(path: Path) -> bool:
    """Returns whether a directory holds such a file, or the path is one."""
    return any((path / name).is_file() for name in WEIGHTS) or (
        path.is_file() and path.suffix == ".npz"
    )


def read(path: Path, dtype: torch.dtype | None = None) -> SparseAutoencoder:
    """Returns the autoencoder of a directory or file.

    Raises:
        CheckpointError: For a file that is damaged, or tensors that do not fit.
    """
    folder = path.parent if path.is_file() else path
    file = path if path.is_file() else next(
        path / name for name in WEIGHTS if (path / name).is_file()
    )  # fmt: skip
    raw = read_arrays(file) if file.suffix == ".npz" else read_safetensors(file)
    raw = {f"W_{name[2:]}" if name.startswith("w_") else name: raw[name] for name in raw}
    check_tensors(raw, _NAMES, file, optional=(_SKIP,))
    tensors = widened(raw)
    form = InferenceForm(
        rule="jumprelu",
        W_enc=tensors["W_enc"],
        b_enc=tensors["b_enc"],
        W_dec=tensors["W_dec"],
        b_dec=tensors["b_dec"],
        threshold=tensors["threshold"],
        W_skip=tensors.get(_SKIP),
        subtract_bias=False,
        info=_info(folder),
    )
    return form.autoencoder(dtype or raw["W_dec"].dtype)


def _info(folder: Path) -> dict[str, Any]:
    """Returns what the settings beside the file, or else the path, say of the place."""
    beside = folder / "config.json"
    if beside.is_file():
        said = read_json(beside)
        named = {"model": "model_name", "hook": "hf_hook_point_in", "hook_out": "hf_hook_point_out"}
        return {ours: said[theirs] for ours, theirs in named.items() if said.get(theirs)}
    text = str(folder.absolute())
    layer = re.search(r"layer_(\d+)", text)
    info: dict[str, Any] = {}
    if layer:
        part = next((hook for key, hook in _PARTS.items() if key in text), "hook_resid_post")
        info["hook"] = f"blocks.{layer.group(1)}.{part}"
        if "transcoder" in text:
            info["hook_out"] = f"blocks.{layer.group(1)}.hook_mlp_out"
    model = re.search(r"gemma-scope-(\d+b(?:-it)?)", text)
    if model:
        info["model"] = f"google/gemma-2-{model.group(1)}"
    return info
