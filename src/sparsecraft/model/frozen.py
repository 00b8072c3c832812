"""Holds pruned weights at zero while an optimiser trains the others.

The weights are set to zero after every step, whatever momentum or weight decay did to them; their
gradients are zero from the moment they are computed, so that clipping by a global norm sees only
the survivors; and their moments are zero, so that they carry nothing if they ever return.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.mask import Mask


class HeldMask:
    """A mask that an optimiser cannot break, until `remove` is called.

    Args:
        mask: What is held.
        handles: The hooks that hold it.
    """

    def __init__(self, mask: Mask, handles: list[RemovableHandle]) -> None:
        self.mask = mask
        self._handles = handles

    def remove(self) -> None:
        """Lets go: pruned weights train again. Calling it twice does no harm."""
        while self._handles:
            self._handles.pop().remove()

    def __enter__(self) -> HeldMask:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()


@torch.no_grad()
def hold_mask(model: nn.Module, mask: Mask, optimizer: Optimizer) -> HeldMask:
    """Applies the mask now and after every step of the optimiser.

    Args:
        model: The model that trains.
        mask: What to keep, by parameter name.
        optimizer: The optimiser of the masked parameters. Its state may be there already.

    Returns:
        A handle; `remove` ends the hold. It is a context manager too.

    Raises:
        InvalidValue: If the mask does not fit the model, or a masked parameter that trains is not
            among the optimiser's.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> sgd = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
        >>> held = hold_mask(layer, Mask({"weight": torch.tensor([[True, False]])}), sgd)
        >>> layer(torch.ones(1, 2)).sum().backward()
        >>> sgd.step()
        >>> layer.weight[0, 1].item()
        0.0
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    _check_owned(mask, parameters, optimizer)
    mask.apply_(parameters)
    pruned = {parameters[name]: ~keep.to(parameters[name].device) for name, keep in mask.items()}

    def clear_gradients(*_: Any) -> None:
        for parameter, gone in pruned.items():
            if parameter.grad is not None:
                parameter.grad.masked_fill_(gone, 0)

    def clear_weights(*_: Any) -> None:
        with torch.no_grad():
            for parameter, gone in pruned.items():
                parameter.masked_fill_(gone, 0)
                _clear_moments(optimizer, parameter, gone)

    clear_gradients()
    clear_weights()  # and the moments that a dense phase may have left
    handles = [
        optimizer.register_step_pre_hook(clear_gradients),
        optimizer.register_step_post_hook(clear_weights),
    ]
    handles += [
        parameter.register_post_accumulate_grad_hook(_clearing(gone))
        for parameter, gone in pruned.items()
        if parameter.requires_grad
    ]
    return HeldMask(mask, handles)


def _clearing(gone: Tensor) -> Callable[[Tensor], None]:
    def clear(parameter: Tensor) -> None:
        if parameter.grad is not None:
            parameter.grad.masked_fill_(gone, 0)

    return clear


def _clear_moments(optimizer: Optimizer, parameter: Tensor, gone: Tensor) -> None:
    """Sets every per-weight entry of the optimiser's state to zero where the weight is pruned."""
    for value in optimizer.state.get(parameter, {}).values():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            value.masked_fill_(gone, 0)


def _check_owned(mask: Mask, parameters: dict[str, nn.Parameter], optimizer: Optimizer) -> None:
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    training = {name: p for name, p in parameters.items() if name in mask and p.requires_grad}
    strangers = [name for name, parameter in training.items() if id(parameter) not in owned]
    if strangers:
        raise InvalidValue(
            f"{len(strangers)} masked parameters are not trained by this optimiser: "
            f"{strangers[:3]}. Give the optimiser that steps them."
        )
