"""Saved autoencoders: one directory, written whole or not at all, in our format or another's.

Ours is `sparsecraft_sae.json` (sizes, activation, options, where the activations came from) beside
`sae.safetensors` (the module's own keys). The formats of other libraries are recognised by their
files; each is one module of `sparsecraft.model.sae.formats`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsecraft.core.errors import CheckpointError, InvalidValue, UnknownName
from sparsecraft.core.kinds import Activation
from sparsecraft.model.files import atomic_directory
from sparsecraft.model.sae.autoencoder import SparseAutoencoder


def save_pretrained(
    sae: SparseAutoencoder,
    path: str | Path,
    *,
    format: str = "sparsecraft",
    overwrite: bool = False,
) -> tuple[str, ...]:
    """Writes an autoencoder into a directory, and returns what the format could not say.

    Args:
        sae: What to save; it is not changed.
        path: The directory to make.
        format: "sparsecraft", which holds everything; or "saelens", "sparsify",
            "dictionary_learning", which hold what those libraries compute.
        overwrite: Whether a directory that exists is replaced.

    Returns:
        Sentences for the user: what was folded into the weights, what is lost. Empty for ours.

    Raises:
        InvalidValue: If the format cannot hold this autoencoder; the message says what to do.
        CheckpointError: If the directory exists, or the disk is full.

    Example:
        >>> import tempfile
        >>> from sparsecraft.methods.codes.topk import TopK
        >>> sae = SparseAutoencoder(d_in=4, d_sae=8, activation=TopK(k=2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_pretrained(sae, folder + "/my-sae")
        ...     same = from_pretrained(folder + "/my-sae")
        >>> x = torch.randn(3, 4)
        >>> torch.equal(sae.eval()(x), same(x))
        True
    """
    from sparsecraft.model.sae import formats

    writer = formats.writer(format)
    try:
        with atomic_directory(Path(path), overwrite=overwrite) as folder:
            return writer(sae, folder)
    except InvalidValue as error:
        raise InvalidValue(f"the format {format} cannot hold this autoencoder: {error}") from error


def from_pretrained(
    source: str | Path,
    subfolder: str = "",
    *,
    format: str | None = None,
    dtype: torch.dtype | None = None,
    activation_scale: float | None = None,
) -> SparseAutoencoder:
    """Returns a saved autoencoder, in evaluation mode; it always reads raw activations.

    Args:
        source: A directory or file; or a hub id, "org/name" or "org/name/folder/in/it".
        subfolder: A folder in it.
        format: One of `formats.FORMATS`; by default what the files say.
        dtype: Of the weights; as saved by default.
        activation_scale: What activations were multiplied by in training, for a SAELens file that
            says so and does not hold the number.

    Raises:
        CheckpointError: If there is nothing to read, or something is missing, damaged or too much;
            the message names the file.
        UnknownName: For a format that does not exist.
    """
    from sparsecraft.model.sae import formats
    from sparsecraft.model.sae.hub import local_copy

    path = local_copy(source, subfolder)
    name = formats.recognised(path) if format is None else format
    reader = formats.reader(name)
    if activation_scale is not None and name != "saelens":
        raise InvalidValue(
            f"activation_scale is for files of SAELens that want it; {path} is of the format "
            f"{name}, which says its scale itself. Leave it out."
        )
    options = {} if activation_scale is None else {"activation_scale": activation_scale}
    try:
        return reader(path, dtype, **options)
    except (InvalidValue, UnknownName) as error:
        raise CheckpointError(f"{path}: {error}") from error


def skeleton(d_in: int, d_sae: int, activation: Activation, **options: Any) -> SparseAutoencoder:
    """Returns an autoencoder whose tensors have shapes and no content yet; `filled` fills it."""
    with torch.device("meta"):
        return SparseAutoencoder(d_in, d_sae, activation, **options)


def filled(
    sae: SparseAutoencoder, state: Mapping[str, Tensor], dtype: torch.dtype
) -> SparseAutoencoder:
    """Puts tensors into an autoencoder's places, and returns it in evaluation mode.

    Args:
        sae: From `skeleton`.
        state: By the module's keys.
        dtype: Of the weights; what the activation keeps stays in float32 or better.

    Raises:
        InvalidValue: If tensors are missing or too much, have another shape, or are not finite.
    """
    places = sae.state_dict()
    _check_state(places, state)
    own = torch.promote_types(dtype, torch.float32)
    ready = {}
    for name, tensor in state.items():
        place = places[name]
        if place.is_floating_point():
            tensor = tensor.to(own if name.startswith("own_") else dtype)
        # W_enc is stored by column, latent after latent.
        by_column = place.dim() == 2 and place.stride(0) == 1 and place.shape[0] > 1
        ready[name] = tensor.T.contiguous().T if by_column else tensor.contiguous()
    sae.load_state_dict(ready, assign=True)
    return sae.eval()


def _check_state(places: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    missing, surplus = sorted(set(places) - set(state)), sorted(set(state) - set(places))
    if missing or surplus:
        parts = [f"lacks {', '.join(missing)}"] if missing else []
        parts += [f"has {', '.join(surplus)} too much"] if surplus else []
        raise InvalidValue(
            f"the file {' and '.join(parts)}. Were files of two autoencoders mixed, or was it "
            "written by another version?"
        )
    for name, place in places.items():
        tensor = state[name]
        if tensor.shape != place.shape:
            raise InvalidValue(
                f"{name} has the shape {tuple(tensor.shape)}; the settings say {tuple(place.shape)}"
            )
        if not name.startswith("own_") and not bool(torch.isfinite(tensor).all()):
            raise InvalidValue(
                f"{name} has NaN or infinite values: the training that made it diverged, or the "
                "file is damaged"
            )
