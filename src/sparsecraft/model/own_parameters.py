"""Trained parameters that belong to a method, such as scales or companding constants.

They lie beside the model, not in it, so that its `state_dict` and the user's optimiser, schedule
and checkpoints stay as they are. The host steps them with an optimiser of its own at the user's
learning rate of the moment; whoever gives them to the user's optimiser has them stepped there.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsecraft.core.errors import CheckpointError
from sparsecraft.core.kinds import Tensors, TrainedLayer
from sparsecraft.model.ranks import mean_over_ranks_


class OwnParameters:
    """The method's parameters by layer, and what steps them.

    Args:
        values: Initial values by target and name; one tensor given twice is one parameter.
        layers: Each gets its parameters.
        options: "rate_scale" of the user's learning rate (1) and "weight_decay" (0).
    """

    def __init__(
        self,
        values: Mapping[str, Tensors],
        layers: Mapping[str, TrainedLayer],
        options: Mapping[str, float],
    ) -> None:
        made: dict[int, nn.Parameter] = {}
        self.named: dict[str, nn.Parameter] = {}
        for target, tensors in values.items():
            own = {}
            for name, value in tensors.items():
                if id(value) not in made:
                    made[id(value)] = nn.Parameter(value.detach().clone())
                    self.named[f"{target}/{name}"] = made[id(value)]
                own[name] = made[id(value)]
            layers[target].parameters = own
        self.rate_scale = options.get("rate_scale", 1.0)
        self.weight_decay = options.get("weight_decay", 0.0)
        self._optimizer: Optimizer | None = None
        self._waiting: Mapping[str, Any] | None = None

    def __iter__(self) -> Iterator[nn.Parameter]:
        return iter(self.named.values())

    def __len__(self) -> int:
        return len(self.named)

    def attach(self, optimizer: Optimizer) -> None:
        """Makes the optimiser that steps them, unless the user's holds them already."""
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        free = [parameter for parameter in self if id(parameter) not in held]
        if not free:
            return
        self._optimizer = _like(optimizer, free, self.weight_decay)
        if self._waiting is not None:
            self._optimizer.load_state_dict(dict(self._waiting))
            self._waiting = None

    def before_step(self) -> None:
        """Averages their gradients over the ranks."""
        mean_over_ranks_(p.grad for p in self if p.grad is not None)

    def step(self, rate: float) -> None:
        """Steps those that the user's optimiser does not hold.

        Args:
            rate: The user's learning rate of this step.
        """
        if self._optimizer is None:
            return
        for group in self._optimizer.param_groups:
            group["lr"] = rate * self.rate_scale
        self._optimizer.step()
        self._optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Returns values and moments."""
        return {
            "values": {name: p.detach().clone() for name, p in self.named.items()},
            "optimizer": self._optimizer.state_dict() if self._optimizer else self._waiting,
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up values and moments.

        Raises:
            CheckpointError: If they belong to other parameters.
        """
        values: Mapping[str, Tensor] = state["values"]
        if {n: v.shape for n, v in values.items()} != {n: p.shape for n, p in self.named.items()}:
            raise CheckpointError(
                f"the checkpoint holds own parameters {sorted(values)[:3]}, the method has "
                f"{sorted(self.named)[:3]}. Load it into a Sparsifier of the same method and model."
            )
        for name, parameter in self.named.items():
            parameter.copy_(values[name])
        # An optimiser takes the tensors it is given as its own, and changes them later.
        moments = copy.deepcopy(state["optimizer"])
        if self._optimizer is not None and moments is not None:
            self._optimizer.load_state_dict(moments)
        else:
            self._waiting = moments


def _like(optimizer: Optimizer, parameters: list[nn.Parameter], weight_decay: float) -> Optimizer:
    """Returns SGD with the user's momentum where the user has SGD, else AdamW."""
    group = optimizer.param_groups[0]
    if isinstance(optimizer, torch.optim.SGD):
        return torch.optim.SGD(
            parameters,
            lr=group["lr"],
            momentum=group["momentum"],
            nesterov=group["nesterov"],
            weight_decay=weight_decay,
        )
    betas = group.get("betas", (0.9, 0.999))
    return torch.optim.AdamW(parameters, lr=group["lr"], betas=betas[:2], weight_decay=weight_decay)
