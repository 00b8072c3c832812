"""Our own format: everything the module is, in `sparsecraft_sae.json` and `sae.safetensors`.

Settings: `sparsecraft_sae` (version of the format), `sparsecraft` (version that wrote it), `d_in`,
`d_sae`, `d_out`, `activation` (method and its settings), `options`, `info`. Tensors: the keys of
the module's state_dict, row-major. A key that is not known is an error: it would change what the
file means.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from sparsecraft.core import catalog
from sparsecraft.core.errors import CheckpointError, InvalidValue
from sparsecraft.core.kinds import Activation
from sparsecraft.model.sae.autoencoder import SparseAutoencoder
from sparsecraft.model.sae.files import filled, skeleton
from sparsecraft.model.sae.formats.tensors import (
    check_settings,
    needed,
    read_json,
    read_safetensors,
    write_safetensors,
)

SETTINGS = "sparsecraft_sae.json"
WEIGHTS = "sae.safetensors"
VERSION = 1
_KEYS = (
    "sparsecraft_sae", "sparsecraft", "d_in", "d_sae", "d_out", "activation", "options", "info",
)  # fmt: skip
_OPTIONS = ("transcoder", "skip", "tied", "row_norm", "prefixes", "unroll", "subtract_bias")


def recognises(path: Path) -> bool:
    """Returns whether a directory is of this format."""
    return (path / SETTINGS).is_file()


def read(path: Path, dtype: torch.dtype | None = None) -> SparseAutoencoder:
    """Returns the autoencoder of a directory.

    Raises:
        CheckpointError: For a later version, an unknown setting, or tensors that do not fit.
    """
    file = path / SETTINGS
    settings = read_json(file)
    version = settings.get("sparsecraft_sae")
    if version != VERSION:
        raise CheckpointError(
            f"{file} is of version {version!r} of the format; this sparsecraft reads version "
            f"{VERSION}. Update sparsecraft."
        )
    check_settings(settings, _KEYS, file)
    options = dict(needed(settings, "options", file))
    check_settings(options, _OPTIONS, file)
    options["prefixes"] = tuple(options.get("prefixes", ()))
    activation = catalog.restore(needed(settings, "activation", file))
    sae = skeleton(
        needed(settings, "d_in", file),
        needed(settings, "d_sae", file),
        cast(Activation, activation),
        d_out=needed(settings, "d_out", file),
        **options,
    )
    state = read_safetensors(path / WEIGHTS)
    saved = state["W_dec"].dtype if "W_dec" in state else torch.float32
    filled(sae, state, dtype or saved)
    sae.info = dict(needed(settings, "info", file))
    return sae


def write(sae: SparseAutoencoder, folder: Path) -> tuple[str, ...]:
    """Writes the autoencoder into a folder; nothing is lost, so there are no notes.

    Raises:
        InvalidValue: If the activation is not registered, or `info` holds more than plain values.
    """
    (folder / SETTINGS).write_text(_text(_settings(sae)), encoding="utf-8")
    write_safetensors(sae.state_dict(), folder / WEIGHTS, {"sparsecraft_sae": str(VERSION)})
    return ()


def check_writable(sae: SparseAutoencoder) -> None:
    """Raises what `write` would for this activation and this `info`, before a training is spent.

    Raises:
        InvalidValue: If the activation is not registered, or `info` holds more than plain values.
    """
    _text(_settings(sae))


def _settings(sae: SparseAutoencoder) -> dict[str, Any]:
    from sparsecraft import __version__

    if not hasattr(sae.activation, "info"):
        raise InvalidValue(
            f"the activation {type(sae.activation).__name__} has no name to be found by: register "
            "it with @method(name, paper=..., taxonomy=...)"
        )
    return {
        "sparsecraft_sae": VERSION,
        "sparsecraft": __version__,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "d_out": sae.d_out,
        "activation": catalog.describe(sae.activation),
        "options": {
            "transcoder": sae.transcoder,
            "skip": sae.W_skip is not None,
            "tied": sae.tied,
            "row_norm": sae.row_norm,
            "prefixes": list(sae.prefixes),
            "unroll": sae.unroll,
            "subtract_bias": sae.subtract_bias,
        },
        "info": sae.info,
    }


def _text(settings: Mapping[str, Any]) -> str:
    try:
        return json.dumps(settings, indent=1) + "\n"
    except (TypeError, ValueError) as error:
        raise InvalidValue(
            f"info or the activation's settings hold what JSON cannot: {error}. Keep only texts, "
            "numbers, lists and dictionaries there."
        ) from error
