"""Floating-point operations of a forward pass, counted on the operations that really run.

Only matrix products, convolutions and attention count, as is usual; one multiply-add is two. The
effective count of a sparse model is that of its dense kernels with every masked layer's products
scaled by its density: what a perfect sparse kernel would have to do, not what is saved here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.mask import Mask


@dataclass(frozen=True)
class FlopProfile:
    """The FLOPs of one forward pass, and which modules do them.

    Args:
        total: Of the dense kernels.
        modules: Module name to its own FLOPs, without those of its children.
        sizes: Parameter name to number of entries.
    """

    total: int
    modules: Mapping[str, int]
    sizes: Mapping[str, int]

    def effective(self, densities: Mapping[str, float]) -> int:
        """Returns the FLOPs with the products of some modules scaled by their density.

        A parameter's density scales the products of the module that owns it; where a module owns
        several of the given parameters, such as fused experts, their mean by size does.

        Args:
            densities: Parameter name to fraction kept; the others are dense.

        Raises:
            UnknownName: For a name that is no parameter's.
        """
        kept: dict[str, float] = {}
        total: dict[str, int] = {}
        for name, density in densities.items():
            if name not in self.sizes:
                raise UnknownName("parameter", name, self.sizes)
            module = name.rpartition(".")[0]
            kept[module] = kept.get(module, 0.0) + density * self.sizes[name]
            total[module] = total.get(module, 0) + self.sizes[name]
        saved = sum(self.modules.get(m, 0) * (1 - kept[m] / total[m]) for m in total)
        return round(self.total - saved)


def profile_flops(
    model: nn.Module, example_input: Mapping[str, Tensor] | tuple[Tensor, ...] | Tensor
) -> FlopProfile:
    """Returns the FLOPs of one forward pass by module.

    Args:
        model: Any module; it is run once in evaluation mode and left as it was.
        example_input: Keyword arguments of the forward pass, its arguments or its only argument.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_MISSING)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        # Inference mode would hide the operations from the counter.
        with torch.no_grad(), counter:
            if isinstance(example_input, Mapping):
                model(**example_input)
            else:
                model(*([example_input] if isinstance(example_input, Tensor) else example_input))
    finally:
        for module, training in modes.items():
            module.training = training
    return FlopProfile(
        int(counter.get_total_flops()),
        _own_flops(model, counter.get_flop_counts()),
        {n: p.numel() for n, p in model.named_parameters(remove_duplicate=False)},
    )


def count_flops(
    model: nn.Module,
    example_input: Mapping[str, Tensor] | tuple[Tensor, ...] | Tensor,
    *,
    mask: Mask | None = None,
    densities: Mapping[str, float] | None = None,
) -> int:
    """Returns the FLOPs of one forward pass; see `FlopProfile.effective` for sparse models.

    Args:
        model: Any module; it is run once in evaluation mode and left as it was.
        example_input: Keyword arguments of the forward pass, its arguments or its only argument.
        mask: What was kept, by parameter name; None counts dense.
        densities: The fractions kept, by parameter name, in place of a mask.

    Raises:
        InvalidValue: If both a mask and densities are given.
        UnknownName: For a name that is no parameter's.

    Example:
        >>> count_flops(nn.Linear(8, 4), torch.zeros(3, 8))  # 2 * 3 * 8 * 4
        192
        >>> count_flops(nn.Linear(8, 4), torch.zeros(3, 8), densities={"weight": 0.25})
        48
    """
    if mask is not None and densities is not None:
        raise InvalidValue("both a mask and densities were given: give one of them")
    profile = profile_flops(model, example_input)
    if mask is not None:
        densities = mask.densities
    return profile.total if densities is None else profile.effective(densities)


def _attention_on_cpu(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


# The counter of torch knows the attention kernels of accelerators only.
_MISSING = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_on_cpu}


def _own_flops(model: nn.Module, counts: Mapping[str, Mapping[Any, int]]) -> dict[str, int]:
    """Returns module name to the FLOPs of the module itself, without those of its children."""
    root = type(model).__name__
    totals = {}
    for name, by_operation in counts.items():
        if name == root or name.startswith(f"{root}."):
            totals[name[len(root) + 1 :]] = sum(by_operation.values())
    own = dict(totals)
    for name, flops in totals.items():
        if name:
            parent = name.rpartition(".")[0]
            while parent and parent not in totals:
                parent = parent.rpartition(".")[0]
            if parent in own:
                own[parent] -= flops
    return own
