"""Modules that a finished model has beyond its config: how they are written down and made again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from sparsecraft.core.errors import CheckpointError
from sparsecraft.model.rotated_block import RotatedBlock
from sparsecraft.model.side_branch import SideBranchLinear
from sparsecraft.model.topk_activation import TopKActivation

KINDS: Mapping[str, type[Any]] = {
    "rotated block": RotatedBlock,
    "side branch": SideBranchLinear,
    "top-k activation": TopKActivation,
}
"""Only these are made when a file names them."""


def augmentations(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Returns module name to kind and settings of every module that a config cannot say."""
    return {
        name: {"kind": kind, **module.settings()}
        for name, module in model.named_modules()
        for kind, cls in KINDS.items()
        if isinstance(module, cls)
    }


def augment(model: nn.Module, described: Mapping[str, Mapping[str, Any]]) -> None:
    """Puts the described modules in place of the plain ones, their values still to be loaded.

    Raises:
        CheckpointError: For a kind that is not known or a module that is not there.
    """
    modules = dict(model.named_modules())
    for name, settings in described.items():
        options = dict(settings)
        kind = options.pop("kind", None)
        if kind not in KINDS or name not in modules:
            raise CheckpointError(
                f"{name}: {kind!r} cannot be put into a {type(model).__name__}; known kinds are "
                f"{sorted(KINDS)}. Was it saved by a later sparsecraft?"
            )
        model.set_submodule(name, KINDS[kind].from_settings(modules[name], **options))
