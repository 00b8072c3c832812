"""Finds the repeated blocks of a transformer by structure, not by names."""

from __future__ import annotations

from torch import nn


def is_conv1d(module: nn.Module) -> bool:
    """Returns whether this is GPT-2's Conv1D: a linear layer whose weight is (in, out)."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def is_linear(module: nn.Module) -> bool:
    """Returns whether the module multiplies by a matrix."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def find_blocks(model: nn.Module) -> dict[str, nn.ModuleList]:
    """Returns the topmost lists of like blocks that hold two matrices or more each.

    A list of blocks is a ModuleList (or Sequential) whose members are of one class, each with at
    least two linear layers; a list inside a block, such as one of experts, does not count. A plain
    stack of layers has none.

    Returns:
        Name to list, in the order of the model; empty for a network without such blocks.
    """
    found: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if not inside and isinstance(module, nn.ModuleList | nn.Sequential) and _alike(module):
            found[name] = module  # type: ignore[assignment]
    return found


def _alike(blocks: nn.ModuleList | nn.Sequential) -> bool:
    members = list(blocks)
    if not members or len({type(member) for member in members}) != 1:
        return False
    if any(isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d) for m in members[0].modules()):
        return False
    return sum(is_linear(module) for module in members[0].modules()) >= 2
