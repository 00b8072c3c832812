"""Holds pruned weights at zero while an optimiser trains the others.

The weights are set to zero after every step, whatever momentum or weight decay did to them; their
gradients are zero from the moment they are computed, so that clipping by a global norm sees only
the survivors; and their moments are zero, so that they carry nothing if they ever return. Where
parameters are sharded over ranks (FSDP2), each rank holds its part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.mask import Mask
from sparsecraft.model.sharding import local, part_of


class HeldMask:
    """A mask that an optimiser cannot break, until `remove` is called.

    Args:
        parameters: The masked parameters by name.
        mask: What is kept.
        optimizer: Whose moments are cleared.
        collects: Whether the present step also wants the gradients of pruned weights, asked in
            every backward pass; they are summed in `dense`.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        mask: Mask,
        optimizer: Optimizer,
        collects: Callable[[], bool] = lambda: False,
    ) -> None:
        self.parameters = parameters
        self.optimizer = optimizer
        self.collects = collects
        self.dense: dict[str, Tensor] = {}
        self._cleared: dict[str, int] = {}
        self._mixes: bool | None = None
        self.replace(mask)
        self._handles: list[RemovableHandle] = [
            parameter.register_post_accumulate_grad_hook(self._clearing(name))
            for name, parameter in parameters.items()
            if parameter.requires_grad
        ]
        self._handles.append(optimizer.register_load_state_dict_post_hook(self._loaded))

    @torch.no_grad()
    def replace(self, mask: Mask) -> None:
        """Holds another mask from now on; weights and moments outside it become zero."""
        self.mask = mask
        self._gone = {name: part_of(~mask[name], p) for name, p in self.parameters.items()}
        self._cleared.clear()
        self.clear_gradients()
        for name, gone in self._gone.items():
            local(self.parameters[name]).masked_fill_(gone, 0)
            clear_moments(self.optimizer, self.parameters[name], gone)

    @torch.no_grad()
    def clear_gradients(self, *_: Any) -> None:
        """Sets the gradients of pruned weights to zero, where the backward pass has not."""
        for name, gone in self._gone.items():
            gradient = self.parameters[name].grad
            if gradient is None:
                continue
            part = local(gradient)
            if self._cleared.get(name) != part.data_ptr():
                part.masked_fill_(gone, 0)
        self._cleared.clear()

    @torch.no_grad()
    def clear_weights(self, *_: Any) -> None:
        """Sets pruned weights to zero, and their moments where the optimiser gave them any.

        Where no gradient comes, the moments of most optimisers stay zero by themselves. Whether
        this one mixes entries is seen at its first step under a mask.
        """
        if self._mixes is None and any(self.optimizer.state.get(p) for p in self._all()):
            self._mixes = self._moments_are_alive()
        for name, gone in self._gone.items():
            local(self.parameters[name]).masked_fill_(gone, 0)
            if self._mixes:
                clear_moments(self.optimizer, self.parameters[name], gone)

    def also(self, handles: list[RemovableHandle]) -> None:
        """Removes these hooks too when the mask is let go."""
        self._handles += handles

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

    def _clearing(self, name: str) -> Callable[[Tensor], None]:
        @torch.no_grad()
        def clear(parameter: Tensor) -> None:
            if parameter.grad is None:
                return
            gradient, gone = local(parameter.grad), self._gone[name]
            if self.collects():
                # What earlier passes left outside the mask is zero: this is the present pass's.
                fresh = gradient.masked_fill(~gone, 0)
                self.dense[name] = self.dense[name] + fresh if name in self.dense else fresh
            gradient.masked_fill_(gone, 0)
            self._cleared[name] = gradient.data_ptr()

        return clear

    def _loaded(self, optimizer: Optimizer) -> None:
        """Clears the moments of a state that was loaded."""
        for name, gone in self._gone.items():
            clear_moments(optimizer, self.parameters[name], gone)
        self._mixes = None

    def _moments_are_alive(self) -> bool:
        return any(
            bool(local(value).masked_select(gone).any())
            for name, gone in self._gone.items()
            for value in moments(self.optimizer, self.parameters[name])
        )

    def _all(self) -> list[nn.Parameter]:
        return list(self.parameters.values())


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
    check_owned(mask, parameters, optimizer)
    mask.check(parameters)
    held = HeldMask({name: parameters[name] for name in mask}, mask, optimizer)
    held.also(
        [
            optimizer.register_step_pre_hook(held.clear_gradients),
            optimizer.register_step_post_hook(held.clear_weights),
        ]
    )
    return held


def clear_moments(optimizer: Optimizer, parameter: Tensor, gone: Tensor) -> None:
    """Sets every per-weight entry of the optimiser's state to zero where the weight is gone.

    Args:
        optimizer: Whose state.
        parameter: The parameter, plain or sharded.
        gone: bool of this rank's part, True where cleared.
    """
    for value in moments(optimizer, parameter):
        local(value).masked_fill_(gone, 0)


def moments(optimizer: Optimizer, parameter: Tensor) -> list[Tensor]:
    """Returns what the optimiser remembers of each entry of a parameter."""
    return [
        value
        for value in optimizer.state.get(parameter, {}).values()
        if isinstance(value, Tensor) and value.shape == parameter.shape
    ]


def check_owned(
    names: Mapping[str, Any], parameters: Mapping[str, nn.Parameter], optimizer: Optimizer
) -> None:
    """Raises InvalidValue if a named parameter that trains is not among the optimiser's."""
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    training = {name: p for name, p in parameters.items() if name in names and p.requires_grad}
    strangers = [name for name, parameter in training.items() if id(parameter) not in owned]
    if strangers:
        raise InvalidValue(
            f"{len(strangers)} masked parameters are not trained by this optimiser: "
            f"{strangers[:3]}. Give the optimiser that steps them."
        )
