"""Which layers a transformation takes: all but the stem, the head and what the user names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sparsecraft.core.errors import InvalidValue, NoMatch
from sparsecraft.model.blocks import find_blocks
from sparsecraft.model.targets import Target, find_targets
from sparsecraft.model.units import evaluating, run

ROLES = ("stem", "head")


@dataclass(frozen=True)
class Scope:
    """The layers of a model that are transformed.

    Args:
        targets: What is transformed, in model order.
        skipped: Target name to the reason why it is not.
    """

    targets: tuple[Target, ...]
    skipped: Mapping[str, str]

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules, each once."""
        return tuple(dict.fromkeys(target.module for target in self.targets))


def find_scope(
    model: nn.Module, example_input: Any, skip: Sequence[str] = ROLES, *, whole: bool = False
) -> Scope:
    """Returns the layers to transform.

    Args:
        model: Any module; it is run once.
        example_input: A small input, see `find_units`.
        skip: What stays as it is: "stem", the layers that run before the first block of a network
            of blocks and else the very first; "head", the same at the end; or names as in
            `find_targets`.
        whole: Whether the module is exchanged as a whole, so that it must be called itself.

    Raises:
        NoMatch: If a name matches nothing, or no layer is left.
        InvalidValue: For a grouped convolution that is not skipped.
    """
    if isinstance(skip, str):
        raise InvalidValue(f"skip={skip!r} is not allowed: give a tuple such as ({skip!r},)")
    found = find_targets(model, "*")
    called = _called(model, example_input, [target.module for target in found])
    skipped = {t.name: role for role, t in _roles(model, found, called) if role in skip}
    for pattern in (each for each in skip if each not in ROLES):
        skipped |= {t.name: f"skip={pattern!r}" for t in find_targets(model, pattern)}
    for target in found:
        if whole and target.module not in called:
            skipped.setdefault(target.name, "not called as a module of its own")
    chosen = tuple(target for target in found if target.name not in skipped)
    if not chosen:
        raise NoMatch(
            f"no layer of {type(model).__name__} is left to transform: {dict(skipped)}. "
            "Shorten skip=..."
        )
    grouped = [target.name for target in chosen if target.groups > 1]
    if grouped:
        raise InvalidValue(
            f"grouped or depthwise convolutions {grouped[:3]} cannot be transformed: their cost "
            "does not grow with the square of the width. Name them in skip=..."
        )
    return Scope(chosen, skipped)


def check_exchangeable(model: nn.Module, scope: Scope) -> None:
    """Raises unless every module of the scope is a linear layer or a convolution of torch."""
    for name in scope.modules:
        module = model.get_submodule(name)
        if type(module) not in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d):
            raise InvalidValue(
                f"{name} is a {type(module).__name__}; only torch.nn.Linear and Conv1d to Conv3d "
                f"can be exchanged for several layers. Add {name!r} to skip."
            )


def _called(model: nn.Module, example_input: Any, names: Sequence[str]) -> list[str]:
    """Returns the modules in the order of their first call."""
    order: dict[str, None] = {}

    def note(name: str) -> Any:
        return lambda *_: order.setdefault(name)

    handles = [model.get_submodule(n).register_forward_pre_hook(note(n)) for n in set(names)]
    try:
        with torch.no_grad(), evaluating(model):
            run(model, example_input)
    finally:
        for handle in handles:
            handle.remove()
    return list(order)


def _roles(
    model: nn.Module, found: Sequence[Target], called: Sequence[str]
) -> list[tuple[str, Target]]:
    prefixes = tuple(f"{name}." for name in find_blocks(model))
    inside = [i for i, name in enumerate(called) if prefixes and name.startswith(prefixes)]
    first, last = (inside[0], inside[-1]) if inside else (1, len(called) - 2)
    place = {name: index for index, name in enumerate(called)}
    roles = []
    for target in found:
        index = place.get(target.module)
        if index is not None and index < first:
            roles.append(("stem", target))
        if index is not None and index > last:
            roles.append(("head", target))
    return roles
