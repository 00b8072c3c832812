"""Keeps what a method's loss needs of the last forward pass: logits, a teacher's, maps, states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sparsecraft.core.errors import InvalidValue, MissingStatistic, UnknownName
from sparsecraft.model.captures import CAPTURES, Capture, capture

OUTPUTS = ("logits", "teacher")


class Recording:
    """Records the forward passes of a model while it trains.

    Args:
        model: The model.
        wants: "logits", "teacher", and names of `CAPTURES`.
        teacher: The frozen model whose logits are wanted, if they are; what is captured of the
            model is captured of it too.
    """

    def __init__(self, model: nn.Module, wants: tuple[str, ...], teacher: nn.Module | None) -> None:
        for want in wants:
            if want not in (*OUTPUTS, *CAPTURES):
                raise UnknownName("capture", want, (*OUTPUTS, *CAPTURES))
        self.wants = wants
        self.teacher = teacher
        self._inputs: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._output: Any = None
        seen = [want for want in wants if want in CAPTURES]
        self._captures: dict[str, Capture] = {name: capture(name, model) for name in seen}
        if teacher is not None:
            self._captures |= {f"teacher {name}": capture(name, teacher) for name in seen}
        self._handles: list[RemovableHandle] = []
        if wants:
            self._handles.append(model.register_forward_hook(self._record, with_kwargs=True))

    def _record(self, model: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if model.training:
            self._inputs, self._output = (args, kwargs), output

    def captured(self) -> dict[str, Any]:
        """Returns what was recorded of the last forward pass in training mode.

        Raises:
            MissingStatistic: If there was none since the last step.
        """
        if not self.wants:
            return {}
        if self._inputs is None:
            raise MissingStatistic(
                "sparsifier.loss() needs the forward pass of this step: call the model in training "
                "mode first, then loss()"
            )
        args, kwargs = self._inputs
        found: dict[str, Any] = {"inputs": kwargs or {"args": args}}
        if "logits" in self.wants or "teacher" in self.wants:
            found["logits"] = logits(self._output)
        if "teacher" in self.wants:
            found["teacher"] = self._taught(args, kwargs, found["logits"])
        return found | {name: each.values for name, each in self._captures.items()}

    def clear(self) -> None:
        """Forgets the last forward pass, so that its graph can be freed."""
        self._inputs = self._output = None
        for each in self._captures.values():
            each.clear()

    def remove(self) -> None:
        """Takes all hooks away and gives the model its own attention back."""
        self.clear()
        while self._handles:
            self._handles.pop().remove()
        for each in self._captures.values():
            each.remove()

    def _taught(self, args: Any, kwargs: Mapping[str, Any], student: Tensor) -> Tensor:
        if self.teacher is None:
            raise MissingStatistic(
                "this method learns from a teacher; give Sparsifier(teacher=...)"
            )
        wanted = {name: value for name, value in kwargs.items() if name != "labels"}
        with torch.no_grad():
            taught = logits(self.teacher(*args, **wanted))
        if taught.shape != student.shape:
            raise InvalidValue(
                f"the teacher gives logits {tuple(taught.shape)}, the student "
                f"{tuple(student.shape)}: both need the same vocabulary and the same inputs"
            )
        return taught


def logits(output: Any) -> Tensor:
    """Returns the logits of a model's output: the tensor itself or its `logits`."""
    found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if found is None:
        raise MissingStatistic(
            f"the model gives {type(output).__name__}, which has no logits to compare"
        )
    return found
