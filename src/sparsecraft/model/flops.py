"""Floating-point operations of a forward pass, counted on the operations that really run.

Only matrix products, convolutions and attention count, as is usual; one multiply-add is two. The
effective count of a sparse model is that of its dense kernels with every masked layer's products
scaled by its density: what a perfect sparse kernel would have to do, not what is saved here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from sparsecraft.core.mask import Mask


def count_flops(
    model: nn.Module, example_input: Mapping[str, Tensor] | Tensor, *, mask: Mask | None = None
) -> int:
    """Returns the FLOPs of one forward pass.

    A parameter's density scales the products of the module that owns it; where a module owns
    several masked parameters, such as fused experts, their mean density weighted by size does.

    Args:
        model: Any module; it is run once in evaluation mode and left as it was.
        example_input: Keyword arguments of the forward pass, or its only argument.
        mask: What was kept, by parameter name; None counts dense.

    Example:
        >>> count_flops(nn.Linear(8, 4), torch.zeros(3, 8))  # 2 * 3 * 8 * 4
        192
    """
    counter = FlopCounterMode(display=False, custom_mapping=_MISSING)
    was_training = model.training
    model.eval()
    try:
        # Inference mode would hide the operations from the counter.
        with torch.no_grad(), counter:
            if isinstance(example_input, Tensor):
                model(example_input)
            else:
                model(**example_input)
    finally:
        model.train(was_training)
    total = counter.get_total_flops()
    if mask is None:
        return int(total)
    own = _own_flops(model, counter.get_flop_counts())
    saved = sum(own.get(name, 0) * (1 - d) for name, d in _densities(mask).items())
    return round(total - saved)


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


def _densities(mask: Mask) -> dict[str, float]:
    """Returns module name to the density of its masked parameters together."""
    kept: dict[str, int] = {}
    total: dict[str, int] = {}
    for name, keep in mask.items():
        module = name.rpartition(".")[0]
        kept[module] = kept.get(module, 0) + int(keep.sum())
        total[module] = total.get(module, 0) + keep.numel()
    return {module: kept[module] / total[module] for module in total}
