"""Where the activations of a model's MLPs can be seen, found by structure and not by names.

An MLP widens (one matrix, or two of which one gates the other), applies an activation and narrows
again. Of each one this says which matrices it has and where its activation is watched: at the
output of the activation where that is a module of its own, which is before any dropout, else at the
input of the narrowing matrix. A network without repeated blocks has its activations watched.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from sparsecraft.core.errors import NoMatch, closest
from sparsecraft.model.blocks import find_blocks, is_conv1d, is_linear

_EXACT = ("relu", "relu6", "threshold", "hardshrink", "softshrink", "hardswish", "hardsigmoid")
_HINTS = ("relu", "gelu", "silu", "swish", "mish", "elu", "tanh", "sigmoid", "softplus", "act")
Where = Literal["output", "input", "experts"]


@dataclass(frozen=True)
class MLPSite:
    """One activation that can be watched.

    Args:
        name: What reports call it: the module that holds the MLP, or the activation.
        module: The module that is watched.
        where: "output" or "input" of it, or "experts": each fused expert on its own.
        activation: Name of the activation's module; empty where it is a function.
        kind: Class of the activation, such as "ReLU"; "function" where it is none.
        first: Names of the widening matrices; empty where unknown.
        second: Name of the narrowing matrix; empty where unknown.
        width: Inputs of an MLP.
        hidden: Entries of its activation; 0 where unknown.
        gated: Whether the activation is multiplied with a second branch.
        expert: Which of the fused experts.
    """

    name: str
    module: str
    where: Where
    activation: str
    kind: str
    first: tuple[str, ...] = ()
    second: str = ""
    width: int = 0
    hidden: int = 0
    gated: bool = False
    expert: int | None = None

    @property
    def smooth(self) -> bool:
        """Whether the activation is known never to be exactly zero (GELU, SiLU, ...)."""
        kind = self.kind.lower().removesuffix("activation")
        exact = kind in _EXACT or kind.startswith(("relu", "topk"))
        return self.kind != "function" and not exact


def find_mlp_sites(model: nn.Module, select: str | Sequence[str] | None = None) -> list[MLPSite]:
    """Returns the sites of a model, in its order.

    Args:
        model: Any module.
        select: Globs over names of sites or of modules, or None for all sites. A module that is
            selected and is no part of a site is watched at its output.

    Raises:
        NoMatch: If there is none, with the closest names.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> [(site.name, site.kind) for site in find_mlp_sites(net)]
        [('1', 'ReLU')]
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    found = [*_in_blocks(model, modules)] or [
        MLPSite(name, name, "output", name, type(modules[name]).__name__)
        for name in _activations(dict(model.named_modules()))
    ]
    if select is not None:
        patterns = [select] if isinstance(select, str) else list(select)
        found = [site for pattern in patterns for site in _selected(pattern, found, modules)]
    if not found:
        raise NoMatch(
            "the model has no MLP whose activation can be watched: no matrix that narrows what "
            "another one widened, and no activation module. Name the modules whose outputs are "
            "meant (targets=...)."
        )
    return list(dict.fromkeys(found))


def is_activation(module: nn.Module) -> bool:
    """Returns whether a module is an activation function: named like one, without parameters."""
    if next(module.parameters(), None) is not None or isinstance(module, nn.MultiheadAttention):
        return False
    kind = type(module).__name__.lower()
    leaf = next(module.children(), None) is None
    if type(module).__name__ == "TopKActivation":
        return True
    if type(module).__module__ == "torch.nn.modules.activation":
        return "softmax" not in kind and "softmin" not in kind
    return leaf and any(hint in kind for hint in _HINTS)


def _activations(modules: Mapping[str, nn.Module]) -> list[str]:
    """Returns the names of the activations; of one inside another the outer one."""
    found = [name for name, module in modules.items() if is_activation(module)]
    return [name for name in found if not any(name.startswith(f"{other}.") for other in found)]


def _in_blocks(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[MLPSite]:
    """Yields the sites inside the repeated blocks; shared activations are seen at the input."""
    found: list[MLPSite] = []
    for list_name, blocks in find_blocks(model).items():
        for index, block in enumerate(blocks):
            name = f"{list_name}.{index}" if list_name else str(index)
            found += _of_block(name, block, modules)
    uses = [id(modules[site.activation]) for site in found if site.activation]
    for site in found:
        shared = site.activation and uses.count(id(modules[site.activation])) > 1
        if shared and site.where == "output":
            yield MLPSite(**{**vars(site), "module": site.second, "where": "input"})
        else:
            yield site


def _of_block(prefix: str, block: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[MLPSite]:
    linear = {
        f"{prefix}.{name}": _sizes(module)
        for name, module in block.named_modules()
        if is_linear(module)
    }
    pairs = {second: _firsts(second, linear) for second in linear}
    strict = {s: f for s, f in pairs.items() if f and not _others_read(f, linear)}
    # In a block whose layers all lie side by side, attention comes first and the MLP last.
    chosen = strict or dict([pair for pair in pairs.items() if pair[1]][-1:])
    for second, first in chosen.items():
        yield _site(first, second, linear[second], linear, modules)
    for name, module in block.named_modules():
        if hasattr(module, "num_experts") and hasattr(module, "down_proj"):
            yield from _experts(f"{prefix}.{name}", module)


def _firsts(second: str, linear: Mapping[str, tuple[int, int]]) -> tuple[str, ...]:
    """Returns the matrices that widen what the second one narrows; the nearest in the tree."""
    hidden, width = linear[second]
    if width >= hidden:
        return ()
    fits = [
        name
        for name, (inputs, outputs) in linear.items()
        if name != second and inputs == width and outputs in (hidden, 2 * hidden)
    ]
    nearest = max((len(_common(name, second)) for name in fits), default=0)
    first = tuple(name for name in fits if len(_common(name, second)) == nearest)
    return first if len(first) <= 2 else ()


def _others_read(first: tuple[str, ...], linear: Mapping[str, tuple[int, int]]) -> bool:
    """Whether matrices beside the first ones read the same input, as keys and values do."""
    parents = {name.rpartition(".")[0] for name in first}
    width = linear[first[0]][0]
    return any(
        name.rpartition(".")[0] in parents and inputs == width and name not in first
        for name, (inputs, _) in linear.items()
    )


def _site(
    first: tuple[str, ...],
    second: str,
    sizes: tuple[int, int],
    linear: Mapping[str, tuple[int, int]],
    modules: Mapping[str, nn.Module],
) -> MLPSite:
    hidden, width = sizes
    scope = _common(first[0], second)
    inside = [name for name in _activations(modules) if name.startswith(f"{scope}.")]
    only = inside[0] if len(inside) == 1 else ""
    return MLPSite(
        name=scope,
        module=only or second,
        where="output" if only else "input",
        activation=only,
        kind=type(modules[only]).__name__ if only else "function",
        first=first,
        second=second,
        width=width,
        hidden=hidden,
        gated=len(first) == 2 or linear[first[0]][1] == 2 * hidden,
    )


def _experts(name: str, module: Any) -> Iterator[MLPSite]:
    gated = hasattr(module, "gate_up_proj")
    shape = module.down_proj.shape
    transposed = getattr(module, "is_transposed", False)
    hidden, width = (shape[1], shape[2]) if transposed else (shape[2], shape[1])
    act = getattr(module, "act_fn", None)
    for expert in range(module.num_experts):
        yield MLPSite(
            name=f"{name}[{expert}]",
            module=name,
            where="experts",
            activation=f"{name}.act_fn" if isinstance(act, nn.Module) else "",
            kind=type(act).__name__ if isinstance(act, nn.Module) else "function",
            first=(f"{name}.gate_up_proj" if gated else f"{name}.up_proj",),
            second=f"{name}.down_proj",
            width=width,
            hidden=hidden,
            gated=gated,
            expert=expert,
        )


def _selected(
    pattern: str, sites: Sequence[MLPSite], modules: Mapping[str, nn.Module]
) -> list[MLPSite]:
    names = {site: (site.name, site.module, site.activation) for site in sites}
    found = [s for s in sites if any(fnmatch.fnmatchcase(n, pattern) for n in names[s])]
    if found:
        return found
    plain = [name for name in modules if name and fnmatch.fnmatchcase(name, pattern)]
    if not plain:
        parts = {part for name in modules for part in (name, *name.split("."))}
        near = closest(pattern.strip("*."), parts)
        hint = f" Closest: {', '.join(near)}." if near else ""
        raise NoMatch(f"targets {pattern!r} match no MLP and no module.{hint}")
    return [
        MLPSite(name, name, "output", name, type(modules[name]).__name__)
        if is_activation(modules[name])
        else MLPSite(name, name, "output", "", "function")
        for name in plain
    ]


def _common(first: str, second: str) -> str:
    """Returns the name of the smallest module that holds both."""
    shared = []
    for one, two in zip(first.split("."), second.split("."), strict=False):
        if one != two:
            break
        shared.append(one)
    return ".".join(shared)


def _sizes(module: Any) -> tuple[int, int]:
    """Returns (inputs, outputs) of a linear layer."""
    first, second = module.weight.shape
    return (first, second) if is_conv1d(module) else (second, first)
