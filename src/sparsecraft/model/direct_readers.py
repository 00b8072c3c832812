"""Which modules read the output of which straight away, seen in one forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparsecraft.model.units import evaluating, run


@torch.no_grad()
def direct_readers(model: nn.Module, example_input: Any) -> dict[str, list[str]]:
    """Returns the modules whose input is the very tensor that another module gave.

    Only innermost modules count. What passes through a function in between, such as a sum or an
    activation that is no module, is not direct.

    Args:
        model: Any module; it is run once in evaluation mode and left as it was.
        example_input: A small input.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
        >>> direct_readers(net, torch.rand(4, 2))
        {'0': ['1'], '1': ['2']}
    """
    made: list[tuple[Tensor, str]] = []  # holding the tensors keeps their identities apart
    readers: dict[str, list[str]] = {}

    def reads(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            for tensor, maker in made:
                if args and args[0] is tensor and name not in readers.setdefault(maker, []):
                    readers[maker].append(name)

        return hook

    def makes(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                made.append((output, name))

        return hook

    handles = []
    for name, module in model.named_modules():
        if next(module.children(), None) is None:
            handles.append(module.register_forward_pre_hook(reads(name)))
            handles.append(module.register_forward_hook(makes(name)))
    try:
        with evaluating(model):
            run(model, example_input)
    finally:
        for handle in handles:
            handle.remove()
    return {maker: found for maker, found in readers.items() if found}
