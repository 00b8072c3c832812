"""What a file of SAELens says of where activations came from, so that SAELens takes them there.

SAELens runs a model in one of two ways, and `model_class_name` says in which: "HookedTransformer"
has TransformerLens' names, "AutoModelForCausalLM" the paths of modules, of which it takes what they
return. A place that has a name in TransformerLens is written by it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_LENS = re.compile(r"(blocks\.\d+\.)?([a-z]\w*\.)*hook_\w+")
_NAMES = {"model": "model_name", "context": "context_size", "dataset": "dataset_path"}
_CAUSAL = ("ForCausalLM", "LMHeadModel")


def origin_of(info: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns what SAELens needs to take the same activations, and what it cannot do.

    Args:
        info: Of an autoencoder; what a file of SAELens said before is kept where nothing is newer.
    """
    kept = dict(info.get("saelens", {}).get("metadata", {}))
    named = {theirs: info[ours] for ours, theirs in _NAMES.items() if info.get(ours)}
    hooks, notes = _hooks(info, kept)
    return {**kept, **named, **_reading(info), **hooks}, notes


def reads_heads(metadata: Mapping[str, Any]) -> bool:
    """Returns whether the place has one tensor for each head, which are joined before encoding."""
    return str(metadata.get("hook_name") or "").endswith("hook_z")


def _reading(info: Mapping[str, Any]) -> dict[str, Any]:
    """Returns which tokens were read and kept, as far as it is known."""
    found: dict[str, Any] = {}
    if info.get("prepend_bos") is not None:
        found["prepend_bos"] = bool(info["prepend_bos"])
    if info.get("special_ids") is not None:
        found["exclude_special_tokens"] = list(info["special_ids"]) or False
    if info.get("skip_first") is not None:
        found["seqpos_slice"] = [info["skip_first"], None] if info["skip_first"] else [None]
    return found


def _hooks(
    info: Mapping[str, Any], kept: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns the names of the places for the kind of model that has them, and what to say."""
    given = {"hook_name": info.get("hook"), "hook_name_out": info.get("hook_out")}
    names = {theirs: str(name) for theirs, name in given.items() if name}
    if not names or all(kept.get(theirs) == name for theirs, name in names.items()):
        return {}, ()  # as the file had them
    lens = {theirs: _lens_name(info, theirs, name) for theirs, name in names.items()}
    paths = {theirs: _path(info, theirs, name) for theirs, name in names.items()}
    modules = {f"hf_{theirs}": path for theirs, path in paths.items() if path}
    if all(lens.values()):
        return {"model_class_name": "HookedTransformer", **lens, **modules}, ()
    if not all(paths.values()):
        return {**names, **modules}, (
            f"SAELens hooks what a module returns or what TransformerLens names, and "
            f"{' and '.join(name for theirs, name in names.items() if not paths[theirs])} is "
            "neither: give it the activations yourself",
        )
    kind = str(info.get("model_class") or "")
    base = (
        f"SAELens runs the causal language model, and the activations are of {kind}: there the "
        "hook's name may begin with the name of the model inside (model., transformer.)",
    )
    said = base if kind and not kind.endswith(_CAUSAL) else ()
    return {"model_class_name": "AutoModelForCausalLM", **paths, **modules}, said


def _lens_name(info: Mapping[str, Any], theirs: str, name: str) -> str | None:
    if _LENS.fullmatch(name):
        return name
    found = info.get(theirs.replace("hook_name", "lens_hook"))
    return None if found is None else str(found)


def _path(info: Mapping[str, Any], theirs: str, name: str) -> str | None:
    """Returns the module whose output the place is, or None where it is no output."""
    place = info.get(theirs.replace("hook_name", "place"))
    if place is None:  # of a file that another library wrote, or an older store
        place = name if name.endswith((".input", ".output")) else f"{name}.output"
        if _LENS.fullmatch(name):
            return None
    path, _, kind = str(place).rpartition(".")
    return path if kind == "output" else None
