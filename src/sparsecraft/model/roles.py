"""What a matrix is in its block: attention, feed-forward, or one of several experts.

Attention is found by following a forward pass: what is split into heads, or joins them again, is
attention, whatever it is called. Experts are stacked in one parameter or lie in a list inside the
block. Every other matrix of a block is feed-forward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from sparsecraft.core.errors import NoMatch
from sparsecraft.core.kinds import Role
from sparsecraft.model.blocks import find_blocks
from sparsecraft.model.targets import Target
from sparsecraft.model.units import find_units

# Rows and tokens of a calibration batch that the model is traced on.
ROWS, TOKENS = 2, 16


def find_roles(
    model: nn.Module, targets: Sequence[Target], batch: Mapping[str, Any] | None = None
) -> dict[str, Role | None]:
    """Returns the role of each target, None for one outside the repeated blocks.

    Args:
        model: A transformer; it is run once and left as it was.
        targets: Of `find_targets`.
        batch: Keyword arguments of its forward, of which a small part is used. Without them an
            input is built from the config.

    Raises:
        NoMatch: If no attention of several heads can be found.
        InvalidValue: If the model does not run on the input.
    """
    attention = _attention(model, batch)
    blocks = tuple(f"{name}." for name in find_blocks(model))
    lists = _expert_lists(model, blocks)
    roles: dict[str, Role | None] = {}
    for target in targets:
        if not target.parameter.startswith(blocks):
            roles[target.name] = None
        elif target.parameter in attention:
            roles[target.name] = "attention"
        elif target.index is not None or target.parameter.startswith(lists):
            roles[target.name] = "expert"
        else:
            roles[target.name] = "feed-forward"
    return roles


def _attention(model: nn.Module, batch: Mapping[str, Any] | None) -> set[str]:
    """Returns the names of the parameters that own rows or columns of a head."""
    # PyTorch's own attention is one operation, through which heads cannot be followed.
    known = {
        f"{name}.{own}"
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention)
        for own, _ in module.named_parameters()
    }
    try:
        groups = find_units(model, None if batch is None else _small(batch), ("heads",))
    except NoMatch as error:
        if known:
            return known
        raise NoMatch(
            f"which layers of {type(model).__name__} are attention cannot be told: {error} Name "
            "the layers by a glob instead, such as '*.attn.*'."
        ) from error
    return known | {each.parameter for group in groups for each in group.slices}


def _small(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the beginning of the batch, without what is not needed to run the model."""
    if "input_ids" in batch:
        return {"input_ids": batch["input_ids"][:ROWS, :TOKENS]}
    return {
        key: value[:ROWS] if isinstance(value, Tensor) else value
        for key, value in batch.items()
        if key != "labels"
    }


def _expert_lists(model: nn.Module, blocks: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the prefixes of lists of like modules with matrices, inside the blocks."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and name.startswith(blocks) and len(module) > 1:
            kinds = {type(member) for member in module}
            if len(kinds) == 1 and any(p.dim() > 1 for p in module[0].parameters()):
                found.append(f"{name}.")
    return tuple(found)
