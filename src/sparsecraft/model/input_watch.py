"""Gathers statistics of layers' inputs in the forward passes of a training, where they are due."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from sparsecraft.core.statistics import Statistic
from sparsecraft.model.calibration import Taps, Values, input_hook
from sparsecraft.model.targets import Target


class InputWatch:
    """Watches the inputs of layers while a model trains, in the steps for which it is asked to.

    With several ranks each sees its own inputs; masks made of them are those of the first rank.

    Args:
        model: The model.
        targets: Whose inputs.
        wanted: Which statistics.
        due: Whether the present step is one of those; asked in every forward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Sequence[Target],
        wanted: Sequence[type[Statistic]],
        due: Callable[[], bool],
    ) -> None:
        self.targets, self.wanted = targets, wanted
        self._taps: Taps | None = None

        def begin(module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
            self._watching = module.training and due()
            if self._watching:
                self._taps = self._taps or Taps(targets, wanted, next(module.parameters()).device)
                self._taps.start(kwargs)

        self._watching = False
        modules = dict(model.named_modules())
        self._handles: list[RemovableHandle] = [
            model.register_forward_pre_hook(begin, with_kwargs=True)
        ]
        for name in dict.fromkeys(target.module for target in targets):
            module = modules[name]
            self._handles.append(module.register_forward_pre_hook(self._hook(name, module)))

    def values(self) -> Values:
        """Returns target name to statistics of this step, and begins anew."""
        taps, self._taps, self._watching = self._taps, None, False
        return {} if taps is None else taps.values()[0]

    def remove(self) -> None:
        """Takes all hooks away."""
        while self._handles:
            self._handles.pop().remove()

    def _hook(self, name: str, module: nn.Module) -> Callable[[nn.Module, Any], None]:
        @torch.no_grad()
        def see(module: nn.Module, args: Any) -> None:
            if self._watching and self._taps is not None:
                input_hook(name, module, self._taps)(module, args)

        return see
