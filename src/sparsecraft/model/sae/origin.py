"""How the activations of an autoencoder's training were taken, so that others are taken alike.

An autoencoder's `info` says it in our words, whatever format the file had. A model that read a BOS
first, or positions that were left out, change what an autoencoder sees: scored on activations that
were taken otherwise it looks worse than it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsecraft.core.errors import InvalidValue


def harvest_settings(info: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of `ActivationStore` with which texts are read as in the training.

    Only what is known is in it: context, prepend_bos, skip_first, skip_special. Special tokens are
    left out also where a file of SAELens says that its training kept them (its default): the
    activation of a BOS is so large that figures over it say nothing of the others.

    Args:
        info: Of the autoencoder.

    Raises:
        InvalidValue: If the training took other positions than all from one on.

    Example:
        >>> harvest_settings({"context": 64, "prepend_bos": True, "skip_first": 0})
        {'context': 64, 'prepend_bos': True}
    """
    _check_positions(info)
    found: dict[str, Any] = {}
    if info.get("context"):
        found["context"] = int(info["context"])
    if info.get("prepend_bos") is not None:
        found["prepend_bos"] = bool(info["prepend_bos"])
    if info.get("skip_first"):
        found["skip_first"] = int(info["skip_first"])
    special = info.get("special_ids")
    if special or (special is not None and info.get("tokenizer")):
        found["skip_special"] = tuple(special)
    return found


def harvest_remarks(info: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns what of the training's activations cannot be done here, in sentences.

    Args:
        info: Of the autoencoder.
    """
    options = _saelens(info).get("model_from_pretrained_kwargs") or {}
    if not options.get("center_writing_weights"):
        return ()
    return (
        "it was trained on a residual stream that was centred (center_writing_weights of "
        "TransformerLens takes the mean over its entries away), and Hugging Face models do not "
        "centre: subtract each activation's mean from a store of your own, or take the figures "
        "with care",
    )


def positions_of(sliced: Any) -> tuple[int, bool]:
    """Returns the first position of SAELens' `seqpos_slice`, and whether all behind it are in it.

    Example:
        >>> positions_of([5, None]), positions_of([None]), positions_of([5, -5])
        ((5, True), (0, True), (5, False))
    """
    span = slice(*(sliced or (None,)))
    first = span.start or 0
    return first, first >= 0 and span.stop is None and span.step in (None, 1)


def _check_positions(info: Mapping[str, Any]) -> None:
    sliced = _saelens(info).get("seqpos_slice")
    if sliced and not positions_of(sliced)[1]:
        raise InvalidValue(
            f"it was trained on the positions {tuple(sliced)} of each context (seqpos_slice), and "
            "a store takes all from skip_first on: make a store of your own, and give that"
        )


def _saelens(info: Mapping[str, Any]) -> Mapping[str, Any]:
    found = info.get("saelens", {}).get("metadata", {})
    return found if isinstance(found, Mapping) else {}
