"""The places of a model where activations can be gated, found by structure.

A place is the input of a module with a targeted matrix (fused query, key and value have one input,
so one gate), or the output of an MLP's activation function. What cannot be gated is named, with
the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import NoMatch
from sparsecraft.model.blocks import find_blocks, is_conv1d, is_linear
from sparsecraft.model.mlp_sites import MLPSite, find_mlp_sites
from sparsecraft.model.rotated_block import Shortcut, orthogonal_layers, rotated_blocks
from sparsecraft.model.targets import Select, Target, Targets, find_targets

# Query, key and value have one shape in many models, so that only the name tells the key.
_KEYS = ("k_proj", "key", "key_proj", "k", "wk", "to_k", "k_lin")


@dataclass(frozen=True)
class Place:
    """Where activations are gated.

    Args:
        name: What reports and files call it.
        module: Name of the module.
        at: Whether the module's input or its output is gated.
        features: Entries of a token there.
        numel: Weights whose products scale with what is kept.
        parameters: Names of the parameters that hold them.
        block: Name of the repeated block that it is in, or "".
        orthogonal: Whether the matrix is one that the rotation gives orthogonal columns.
        routed: Whether tokens come in the order of a router, not of their sequence.
    """

    name: str
    module: str
    at: Literal["input", "output"]
    features: int
    numel: int
    parameters: tuple[str, ...]
    block: str = ""
    orthogonal: bool = False
    routed: bool = False

    def weight(self, model: nn.Module) -> Tensor | None:
        """Returns the matrix (outputs, features) that the input is multiplied with, a view."""
        if self.at == "output":
            return None
        module: Any = model.get_submodule(self.module)
        return module.weight.detach().T if is_conv1d(module) else module.weight.detach()

    def target(self, model: nn.Module) -> Target:
        """Returns what calibration takes it for: the input of this module."""
        kind = type(model.get_submodule(self.module)).__name__
        parameter = f"{self.module}.weight"
        return Target(self.name, parameter, self.module, kind, (1, self.features))


@dataclass(frozen=True)
class Places(Sequence[Place]):
    """The places that are gated, and what is left out.

    Args:
        chosen: The places in the model's order.
        skipped: Name and reason of everything that could not be gated or was not selected.
    """

    chosen: tuple[Place, ...]
    skipped: tuple[tuple[str, str], ...]

    def __getitem__(self, index: Any) -> Any:
        return self.chosen[index]

    def __len__(self) -> int:
        return len(self.chosen)


def find_input_places(model: nn.Module, select: Select = None) -> Places:
    """Returns the inputs of the targeted matrices.

    Args:
        model: Any module.
        select: Which matrices, as for `find_targets`.

    Raises:
        NoMatch: If none of the targets can be gated; the message says why.
    """
    targets = find_targets(model, select)
    by_module: dict[str, list[Target]] = {}
    for target in targets:
        by_module.setdefault(target.module, []).append(target)
    blocks = _block_names(model)
    orthogonal = _orthogonal(model)
    chosen: list[Place] = []
    skipped: list[tuple[str, str]] = []
    for name, parts in by_module.items():
        module = model.get_submodule(name)
        reason = _refused(model, name, module, parts)
        if reason:
            skipped.append((name, reason))
            continue
        place = Place(
            name=name,
            module=name,
            at="input",
            features=parts[0].shape[1],
            numel=sum(part.numel for part in parts),
            parameters=(parts[0].parameter,),
            block=_block_of(name, blocks),
        )
        chosen.append(replace(place, orthogonal=bool(place.block) and orthogonal(name)))
    return _checked(chosen, [*skipped, *_not_targeted(targets)])


def find_activation_places(model: nn.Module, select: Select = None, *, gated: bool) -> Places:
    """Returns the outputs of the activation functions of the MLPs.

    Args:
        model: Any module.
        select: Globs over the names of MLPs or activations; None for all.
        gated: Whether only MLPs with a gate branch count.

    Raises:
        NoMatch: If there is none; the message says why.
    """
    names = None if select is None or callable(select) else select
    blocks = _block_names(model)
    chosen: dict[str, Place] = {}
    skipped: list[tuple[str, str]] = []
    for site in find_mlp_sites(model, names):
        reason = _no_activation(site, gated)
        if reason:
            skipped.append((site.name, reason))
        elif site.activation not in chosen:
            chosen[site.activation] = _activation_place(model, site, blocks)
        elif site.where == "experts":
            known = chosen[site.activation]
            chosen[site.activation] = replace(known, numel=known.numel + _spared(site))
    return _checked(list(chosen.values()), skipped)


def _activation_place(model: nn.Module, site: MLPSite, blocks: Sequence[str]) -> Place:
    routed = site.where == "experts"
    names = [*site.first[-1:], site.second] if site.gated else [site.second]
    features = site.hidden or _width_before(model, site.activation)
    return Place(
        name=site.activation,
        module=site.activation,
        at="output",
        features=features,
        numel=_spared(site),
        parameters=tuple(name if routed else f"{name}.weight" for name in names if name),
        block=_block_of(site.activation, blocks),
        routed=routed,
    )


def _spared(site: MLPSite) -> int:
    """Returns the weights that a dropped share of neurons spares: down, and up beside a gate."""
    return site.width * site.hidden * (2 if site.gated else 1)


def _no_activation(site: MLPSite, gated: bool) -> str:
    if gated and not site.gated:
        return "its MLP has no gate branch; this method gates those that have one"
    if not site.activation or site.where == "input":
        return "its activation is not a module of its own, so its output cannot be reached"
    return ""


def _width_before(model: nn.Module, name: str) -> int:
    """Returns the outputs of the matrix before a module, where the structure says no more."""
    width = 0
    for other, module in model.named_modules():
        if other == name:
            break
        if is_linear(module):
            width = _outputs(module)
    return width


def _refused(model: nn.Module, name: str, module: nn.Module, parts: Sequence[Target]) -> str:
    """Returns why the input of a module cannot be gated, or nothing."""
    if isinstance(module, Shortcut):
        return "a shortcut of the rotation carries the whole residual stream; it stays dense"
    if any(part.index is not None for part in parts):
        return (
            "fused experts multiply inside one module, where no gate reaches their inputs; "
            "they stay dense"
        )
    parent = model.get_submodule(name.rpartition(".")[0]) if name else model
    if isinstance(module, nn.MultiheadAttention) or isinstance(parent, nn.MultiheadAttention):
        return "torch's MultiheadAttention multiplies without calling its layers; it stays dense"
    if not is_linear(module):
        return f"a {type(module).__name__} does not multiply tokens by a matrix; it stays dense"
    if sum(part.numel for part in parts) != module.weight.numel():  # type: ignore[operator]
        return "its parts have one input and are gated together: select all of them, or none"
    return ""


def _orthogonal(model: nn.Module) -> Callable[[str], bool]:
    """Returns whether a matrix is one that a rotation gives orthogonal columns, made or not."""
    if rotated_blocks(model):
        return orthogonal_layers(model).__contains__
    gates = _gate_matrices(model)
    return lambda name: name in gates or name.rpartition(".")[2] in _KEYS or _is_fused(model, name)


def _is_fused(model: nn.Module, name: str) -> bool:
    """Returns whether a matrix holds query, key and value, or gate and up, by its shape.

    It and one other are the only matrices of their module, and it gives more than that one reads.
    """
    parent = model.get_submodule(name.rpartition(".")[0])
    linear = {key: child for key, child in parent.named_children() if is_linear(child)}
    if len(linear) != 2 or name.rpartition(".")[2] != next(iter(linear)):
        return False
    first, second = linear.values()
    return _outputs(first) > _inputs(second) and _inputs(first) == _outputs(second)


def _gate_matrices(model: nn.Module) -> set[str]:
    """Returns the matrices whose product goes into the activation function of a gated MLP."""
    try:
        sites = [site for site in find_mlp_sites(model) if site.gated and len(site.first) == 2]
    except NoMatch:
        return set()
    found = {_traced_gate(model, site) for site in sites}
    return found - {""}


def _traced_gate(model: nn.Module, site: MLPSite) -> str:
    """Returns which of two matrices feeds the activation, seen in one run of the MLP on a zero."""
    if not site.activation:
        return ""
    given: dict[int, str] = {}
    fed: list[int] = []
    keep: list[Tensor] = []

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            keep.append(output)
            given[id(output)] = name

        return hook

    handles = [model.get_submodule(n).register_forward_hook(note(n)) for n in site.first]
    watched = model.get_submodule(site.activation)
    handles.append(watched.register_forward_pre_hook(lambda _, args: fed.append(id(args[0]))))
    weight = model.get_submodule(site.first[0]).weight
    try:
        with torch.no_grad():
            model.get_submodule(site.name)(weight.new_zeros(1, 1, site.width))  # type: ignore[operator]
    except (TypeError, RuntimeError, ValueError):
        return ""  # an MLP that is part of a larger module cannot be run alone
    finally:
        for handle in handles:
            handle.remove()
    return next((given[each] for each in fed if each in given), "")


def _not_targeted(targets: Targets) -> Iterator[tuple[str, str]]:
    for row in targets.rows:
        if not row.targeted and len(row.shape) >= 2:
            yield row.name, row.reason


def _checked(chosen: list[Place], skipped: list[tuple[str, str]]) -> Places:
    if not chosen:
        reasons = "; ".join(dict.fromkeys(f"{name}: {reason}" for name, reason in skipped[:3]))
        raise NoMatch(f"nothing of this model can be gated so. {reasons}")
    return Places(tuple(chosen), tuple(skipped))


def _block_names(model: nn.Module) -> list[str]:
    return [
        f"{name}.{i}" for name, blocks in find_blocks(model).items() for i in range(len(blocks))
    ]


def _block_of(name: str, blocks: Sequence[str]) -> str:
    return next((block for block in blocks if name.startswith(f"{block}.")), "")


def _outputs(module: Any) -> int:
    return module.weight.shape[1 if is_conv1d(module) else 0]


def _inputs(module: Any) -> int:
    return module.weight.shape[0 if is_conv1d(module) else 1]
