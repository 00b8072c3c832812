"""Which parameters a method works on, and why not on the others.

A target is (parameter, which axis is the input, slice), shown to methods as a matrix (outputs,
inputs), so that Linear, Conv1D, Conv2d, fused QKV and fused three-dimensional experts are the same
thing to them. Every parameter of the model appears once in the table, with the reason.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import NoMatch, closest
from sparsecraft.core.mask import Mask
from sparsecraft.core.patterns import as_matrix, from_matrix
from sparsecraft.model.blocks import find_blocks, is_conv1d

Select = str | Sequence[str] | Callable[[str, nn.Module], bool] | None
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Target:
    """One matrix of the model.

    Args:
        name: What methods and reports call it.
        parameter: Name of the parameter it is part of.
        module: Name of the module that owns the parameter.
        type: The module's class, for selection by type.
        shape: (outputs, inputs) or (outputs, inputs, *kernel).
        input_axis: Which axis of the parameter (of its slice) is the input: 1, or 0 if transposed.
        index: The expert, where the parameter stacks several.
        rows: The outputs (start, stop) that belong to it, where several are fused.
        groups: Groups of a convolution.
    """

    name: str
    parameter: str
    module: str
    type: str
    shape: tuple[int, ...]
    input_axis: int = 1
    index: int | None = None
    rows: tuple[int, int] | None = None
    groups: int = 1

    @property
    def numel(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(outputs, everything else)."""
        return self.shape[0], math.prod(self.shape[1:])

    def view(self, parameter: Tensor) -> Tensor:
        """Returns the part of the parameter that this is, (outputs, inputs, *kernel); a view."""
        part = parameter if self.index is None else parameter[self.index]
        part = part.transpose(0, 1) if self.input_axis == 0 else part
        return part if self.rows is None else part[self.rows[0] : self.rows[1]]

    def matrix(self, parameter: Tensor) -> Tensor:
        """Returns it as a matrix (outputs, inputs); a view where the memory allows."""
        return as_matrix(self.view(parameter))

    @torch.no_grad()
    def write(self, parameter: Tensor, values: Tensor) -> None:
        """Writes a matrix, or a tensor (outputs, inputs, *kernel), back into the parameter."""
        whole = values if values.shape == self.shape else from_matrix(values, self.shape)
        self.view(parameter).copy_(whole)


@dataclass(frozen=True)
class Row:
    """One line of the table of all parameters."""

    name: str
    shape: tuple[int, ...]
    numel: int
    targeted: bool
    reason: str

    def to_json(self) -> dict[str, object]:
        """Returns it as plain values."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "numel": self.numel,
            "targeted": self.targeted,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Targets(Sequence[Target]):
    """The chosen targets, and the table of everything else."""

    chosen: tuple[Target, ...]
    rows: tuple[Row, ...]

    def __getitem__(self, index: Any) -> Any:
        return self.chosen[index]

    def __len__(self) -> int:
        return len(self.chosen)

    def __iter__(self) -> Iterator[Target]:
        return iter(self.chosen)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Target name to (out, in, *kernel), in model order."""
        return {target.name: target.shape for target in self.chosen}

    @property
    def numel(self) -> int:
        """Number of targeted weights."""
        return sum(target.numel for target in self.chosen)

    def table(self) -> list[dict[str, object]]:
        """Returns one row for every parameter: name, shape, numel, targeted, reason."""
        return [row.to_json() for row in self.rows]

    def matrices(self, model: nn.Module) -> dict[str, Tensor]:
        """Returns every target as a float32 matrix; no copy where it is one already."""
        parameters = dict(model.named_parameters())
        return {t.name: t.matrix(parameters[t.parameter].detach()).float() for t in self.chosen}

    def mask(self, model: nn.Module, matrices: Mapping[str, Tensor]) -> Mask:
        """Returns masks by parameter name from masks by target name."""
        parameters = dict(model.named_parameters())
        masks: dict[str, Tensor] = {}
        for target in self.chosen:
            if target.name not in matrices:
                continue
            whole = masks.get(target.parameter)
            if whole is None:
                whole = torch.ones(parameters[target.parameter].shape, dtype=torch.bool)
                masks[target.parameter] = whole
            target.write(whole, matrices[target.name].to("cpu"))
        return Mask(masks)


def find_targets(model: nn.Module, select: Select = None) -> Targets:
    """Returns the targets of a model.

    Args:
        model: Any module.
        select: Which ones. None takes the matrices inside the repeated blocks of a transformer, or
            every linear and convolutional weight of a network without blocks. A text, or several,
            takes by name: a glob over module names ("*.mlp.*"), a regular expression ("re:..."),
            a class name ("Conv2d"); a leading "!" takes away. A callable decides from (name,
            module).

    Returns:
        The targets and the table of all parameters, each once; tied ones are counted once.

    Raises:
        NoMatch: If nothing is selected, with the closest names.
    """
    found = list(_candidates(model))
    known = {target.parameter for target in found}
    blocks = tuple(f"{name}." for name in find_blocks(model))
    accepts = selector(model, found, select)
    chosen: list[Target] = []
    reasons: dict[str, str] = {}
    for target in found:
        taken, reason = accepts(target, blocks)
        reasons[target.parameter] = reason
        if taken:
            chosen.append(target)
    if not chosen:
        raise NoMatch(_nothing(select, [t.module for t in found]))
    taken_parameters = {target.parameter for target in chosen}
    rows = []
    tied = ties(model)
    for name, parameter in model.named_parameters():
        reason = reasons[name] if name in known else _no_rule(model, name, parameter)
        reason += f"; tied to {', '.join(tied[name])}, counted once" if name in tied else ""
        rows.append(
            Row(name, tuple(parameter.shape), parameter.numel(), name in taken_parameters, reason)
        )
    return Targets(tuple(chosen), tuple(rows))


def assembled(
    parameter: Tensor, targets: Sequence[Target], compute: Callable[[Target, Tensor], Tensor]
) -> Tensor:
    """Returns the parameter with every target's part replaced by `compute(target, part)`.

    Args:
        parameter: Of the parameter's own shape.
        targets: Its targets: one for a plain weight, several for fused or stacked ones.
        compute: (target, (outputs, inputs, *kernel)) -> the same shape; differentiable.
    """
    only = targets[0]
    if len(targets) == 1 and only.index is None and only.rows is None:
        made = compute(only, only.view(parameter))
        return made.transpose(0, 1) if only.input_axis == 0 else made
    result = parameter.clone()
    for target in targets:
        target.view(result).copy_(compute(target, target.view(parameter)))
    return result


def _candidates(model: nn.Module) -> Iterator[Target]:
    """Yields every matrix that a rule covers, in model order; shared parameters once."""
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        for short, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            full = f"{module_name}.{short}" if module_name else short
            yield from _of_parameter(module, module_name, short, full, parameter)


def _of_parameter(
    module: nn.Module, module_name: str, short: str, full: str, parameter: Tensor
) -> Iterator[Target]:
    shape = tuple(parameter.shape)
    common: dict[str, Any] = {
        "parameter": full,
        "module": module_name,
        "type": type(module).__name__,
    }
    label = module_name or short
    if isinstance(module, nn.Linear) and short == "weight":
        yield Target(name=label, shape=shape, **common)
    elif is_conv1d(module) and short == "weight":
        flipped = (shape[1], shape[0])
        parts = flipped[0] // flipped[1] if module_name.endswith("c_attn") else 1
        yield from _fused(label, flipped, parts, {**common, "input_axis": 0})
    elif isinstance(module, _CONVS) and short == "weight":
        yield Target(name=label, shape=shape, groups=module.groups, **common)
    elif isinstance(module, _TRANSPOSED) and short == "weight" and module.groups == 1:
        turned = (shape[1], shape[0], *shape[2:])
        yield Target(name=label, shape=turned, input_axis=0, **common)
    elif isinstance(module, nn.MultiheadAttention) and short == "in_proj_weight":
        yield from _fused(f"{label}.in_proj", shape, 3, common)
    elif len(shape) == 3 and hasattr(module, "num_experts"):
        axis = 0 if getattr(module, "is_transposed", False) else 1
        one = (shape[2], shape[1]) if axis == 0 else (shape[1], shape[2])
        for index in range(shape[0]):
            name = f"{label}.{short}[{index}]"
            yield Target(name=name, shape=one, input_axis=axis, index=index, **common)


def _fused(
    label: str, shape: tuple[int, ...], parts: int, common: Mapping[str, Any]
) -> Iterator[Target]:
    if parts == 1:
        yield Target(name=label, shape=shape, **common)
        return
    height = shape[0] // parts
    for i, part in enumerate("qkv" if parts == 3 else map(str, range(parts))):
        rows = (i * height, (i + 1) * height)
        yield Target(name=f"{label}[{part}]", shape=(height, *shape[1:]), rows=rows, **common)


def selector(
    model: nn.Module, found: Sequence[Target], select: Select
) -> Callable[[Target, tuple[str, ...]], tuple[bool, str]]:
    """Returns the rule (target, block prefixes) -> (taken, reason)."""
    if select is None:
        return _by_default
    if callable(select):
        modules = dict(model.named_modules())

        def decide(target: Target, _: tuple[str, ...]) -> tuple[bool, str]:
            taken = bool(select(target.name, modules[target.module]))
            return taken, "selected by the function" if taken else "not selected by the function"

        return decide
    patterns = [select] if isinstance(select, str) else list(select)
    wanted = [pattern for pattern in patterns if not pattern.startswith("!")]
    unwanted = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    for pattern in [*wanted, *unwanted]:
        if not any(_matches(pattern, target) for target in found):
            raise NoMatch(_nothing(pattern, [target.module for target in found]))

    def by_pattern(target: Target, blocks: tuple[str, ...]) -> tuple[bool, str]:
        for pattern in unwanted:
            if _matches(pattern, target):
                return False, f"taken out by '!{pattern}'"
        for pattern in wanted:
            if _matches(pattern, target):
                return True, f"selected by '{pattern}'"
        return (False, "matches no target pattern") if wanted else _by_default(target, blocks)

    return by_pattern


def _by_default(target: Target, blocks: tuple[str, ...]) -> tuple[bool, str]:
    if target.type == "Shortcut":
        return False, "residual shortcut of a rotation"
    if not blocks:
        return True, "weight of a linear or convolutional layer"
    if target.parameter.startswith(blocks):
        return True, "matrix of a block"
    return False, "outside the repeated blocks (stem, pooler or head)"


def _matches(pattern: str, target: Target) -> bool:
    names = (target.name, target.module, target.parameter)
    if pattern.startswith("re:"):
        return any(re.search(pattern[3:], name) for name in names)
    return target.type == pattern or any(fnmatch.fnmatchcase(name, pattern) for name in names)


def _nothing(select: object, modules: Sequence[str]) -> str:
    if select is None:
        return "the model has no linear or convolutional weight to prune"
    if not isinstance(select, str):
        return f"targets {select!r} leave nothing to prune"
    near = closest(
        select.strip("*."), {part for name in modules for part in (name, *name.split("."))}
    )
    hint = f" Closest: {', '.join(near)}." if near else ""
    return (
        f"targets {select!r} match no layer.{hint} Write a glob over module names ('*.mlp.*'), "
        "a regular expression ('re:...') or a class name ('Linear'); --dry-run lists all layers."
    )


def _no_rule(model: nn.Module, name: str, parameter: Tensor) -> str:
    module = model.get_submodule(name.rpartition(".")[0])
    if parameter.dim() < 2:
        return "one axis: a bias or a normalisation"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, _TRANSPOSED):
        return "grouped transposed convolution: no rule covers it"
    return f"no rule covers this parameter of {type(module).__name__}"


def ties(model: nn.Module) -> dict[str, list[str]]:
    """Returns the first name of each shared parameter to its other names."""
    first: dict[int, str] = {}
    found: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            found.setdefault(first[id(parameter)], []).append(name)
        else:
            first[id(parameter)] = name
    return found
