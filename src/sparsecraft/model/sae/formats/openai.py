"""OpenAI's autoencoders of GPT-2 small: one `.pt` file of tensors and the activation's name.

Files of a TopK normalise each row by its mean and standard deviation, those of a ReLU do not (Gao
et al., 2024, arXiv 2406.04093); the activation's name decides both, as in the code beside them. The
counters of the training (`stats_last_nonzero`, ...) are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue
from sparsecraft.model.sae.autoencoder import SparseAutoencoder
from sparsecraft.model.sae.formats.inference_form import InferenceForm
from sparsecraft.model.sae.formats.tensors import check_tensors, needed, read_pickled, widened

_NEEDED = ("pre_bias", "encoder.weight", "latent_bias")
_COUNTERS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
_TWICE = ("activation.k", "activation.postact_fn")
"""What `activation_state_dict` says, once more, where a newer torch saved the file."""
_DECODERS = ("decoder.weight", "decoder.linear.weight")


def recognises(path: Path) -> bool:
    """Returns whether a path is a `.pt` file; what is in it decides when it is read."""
    return path.is_file() and path.suffix == ".pt"


def read(path: Path, dtype: torch.dtype | None = None) -> SparseAutoencoder:
    """Returns the autoencoder of a file.

    Raises:
        InvalidValue: For an activation that has no equal here.
        CheckpointError: For a file that is damaged, or tensors that do not fit.
    """
    raw = read_pickled(path)
    activation, arguments = raw.pop("activation", None), raw.pop("activation_state_dict", {})
    raw = {name: value for name, value in raw.items() if name not in _TWICE}
    check_tensors(raw, _NEEDED, path, optional=(*_COUNTERS, *_DECODERS))
    tensors = widened(raw)
    form = InferenceForm(
        W_enc=tensors["encoder.weight"].T,
        b_enc=tensors["latent_bias"],
        W_dec=_decoder(tensors),
        b_dec=tensors["pre_bias"],
        info={"model": "gpt2"},
        **_rule(activation, arguments, path),
    )
    return form.autoencoder(dtype or raw["encoder.weight"].dtype)


def _rule(activation: str | None, arguments: Mapping[str, Any], path: Path) -> dict[str, Any]:
    # The first files, all of them ReLU, have no name.
    if activation in (None, "ReLU"):
        return {"rule": "relu"}
    if activation != "TopK":
        raise InvalidValue(
            f"its activation is {activation!r}; only ReLU and TopK have an equal here, and a ReLU "
            "in its place would give other codes"
        )
    after = arguments.get("postact_fn", "ReLU")
    if after != "ReLU":
        raise InvalidValue(f"its TopK is followed by {after!r}; only ReLU has an equal here")
    return {"rule": "topk", "k": int(needed(arguments, "k", path)), "row_norm": "layer"}


def _decoder(tensors: Mapping[str, Tensor]) -> Tensor:
    """Returns W_dec (d_sae, d_in); a tied file has only the encoder's matrix."""
    if "decoder.weight" in tensors:
        return tensors["decoder.weight"].T
    return tensors["encoder.weight"]
