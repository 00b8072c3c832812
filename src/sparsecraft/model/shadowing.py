"""Lets a module compute with another tensor in place of a parameter, for the time of a forward.

The tensor lies in the module's `__dict__`, which Python asks before the module's own parameters,
and is taken away when the forward ends. The parameter itself stays where it is: `state_dict` keys,
optimisers, DDP and FSDP2 see nothing of it, and a copied module computes in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Compute = Callable[[nn.Module, Tensor], Tensor]
"""(module, its parameter) -> what it computes with."""


def shadow(model: nn.Module, parameter: str, compute: Compute) -> list[RemovableHandle]:
    """Makes the owner of a parameter compute with `compute(owner, parameter)`.

    Args:
        model: Where the parameter lives.
        parameter: Its name.
        compute: Called at the beginning of every forward of the owner; differentiable.

    Returns:
        The hooks; removing them ends it.
    """
    # Masks are made by compiled loops and by Python, into which torch.compile must not look.
    compute = torch.compiler.disable(compute)
    path, _, name = parameter.rpartition(".")
    owner_path, caller_path = path, _caller(model, path)
    below = owner_path[len(caller_path) :].lstrip(".")

    def owner_of(caller: nn.Module) -> nn.Module:
        return caller.get_submodule(below) if below else caller

    def enter(caller: nn.Module, args: Any) -> None:
        owner = owner_of(caller)
        # The parameter as it is now: FSDP2 has put the gathered one in place by this time.
        owner.__dict__[name] = compute(owner, owner._parameters[name])  # type: ignore[arg-type]

    def leave(caller: nn.Module, args: Any, output: Any) -> None:
        owner_of(caller).__dict__.pop(name, None)

    caller = model.get_submodule(caller_path)
    return [
        caller.register_forward_pre_hook(enter),
        caller.register_forward_hook(leave, always_call=True),
    ]


def _caller(model: nn.Module, path: str) -> str:
    """Returns the module whose forward reads the parameter.

    nn.MultiheadAttention multiplies with its output projection's weight without calling it.
    """
    above = path.rpartition(".")[0]
    if path and isinstance(model.get_submodule(above), nn.MultiheadAttention):
        return above
    return path
