"""What a training looks at besides the loss: attention maps, hidden states, MLP activations.

A capture listens to a model's forward passes and keeps what it saw in the last one, with its
graph, so that a penalty on it trains the model. Attention maps are taken where they arise, at the
softmax (see `softmaxes`). Models of Hugging Face, whose kernels come from elsewhere, are switched
to their eager attention until the capture is removed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import MissingStatistic, NoMatch, UnknownName
from sparsecraft.model.blocks import find_blocks, is_conv1d, is_linear
from sparsecraft.model.softmaxes import Softmaxes


class Capture:
    """Keeps tensors of a model's last forward pass, in the order in which they arose.

    Args:
        model: The module to listen to; its `__call__` begins and ends a pass.
    """

    advice: ClassVar[str] = ""
    """What to do where a pass gave nothing."""

    def __init__(self, model: nn.Module) -> None:
        self._kept: list[Tensor] = []
        self._ran = False
        self._trains = False
        self._handles = [
            model.register_forward_pre_hook(self._enter),
            model.register_forward_hook(self._leave, always_call=True),
        ]

    @property
    def values(self) -> list[Tensor]:
        """The tensors of the last forward pass; empty before the first.

        Raises:
            MissingStatistic: If the model ran and nothing was seen, or it trains and what was
                seen has no gradient.
        """
        if self._ran and not self._kept:
            raise MissingStatistic(f"the forward pass gave nothing to capture. {self.advice}")
        if self._trains and not any(value.requires_grad for value in self._kept):
            raise MissingStatistic(
                "what was captured has no gradient, so that a penalty on it would train nothing: "
                "gradient checkpointing hides it (set use_reentrant=False), or all weights before "
                "it are frozen"
            )
        return list(self._kept)

    def clear(self) -> None:
        """Lets go of what was kept."""
        self._kept = []
        self._ran = self._trains = False

    def remove(self) -> None:
        """Stops listening and leaves the model as it was."""
        self.clear()
        for handle in self._handles:
            handle.remove()

    def _enter(self, model: nn.Module, *_: Any) -> None:
        self.clear()
        self._trains = model.training and torch.is_grad_enabled()

    def _leave(self, *_: Any) -> None:
        self._ran = True

    def _keep(self, value: Tensor) -> None:
        self._kept.append(value)

    def __getstate__(self) -> dict[str, Any]:
        # A copy of a model that is listened to has not run yet, and graphs cannot be copied.
        return {**self.__dict__, "_kept": [], "_ran": False, "_trains": False}


class AttentionCapture(Capture):
    """Keeps every attention map (batch, heads, queries, keys) of the last forward pass.

    Args:
        model: Any module. A Hugging Face model attends eagerly until `remove`.

    Raises:
        MissingStatistic: From `maps`, if attention ran in a kernel that never forms its map.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, nhead=2, batch_first=True, dropout=0.0)
        >>> capture = AttentionCapture(layer)
        >>> _ = layer(torch.ones(3, 5, 8))
        >>> [tuple(map.shape) for map in capture.maps]
        [(3, 2, 5, 5)]
        >>> capture.remove()
    """

    logits: ClassVar[bool] = False
    advice: ClassVar[str] = (
        "Attention maps exist only where attention is computed in steps: build the model with "
        'attn_implementation="eager" (Hugging Face), set fused_attn=False (timm), do not compile '
        "it, or compute softmax(queries @ keys.T) over the last axis of (batch, heads, queries, "
        "keys) in your own module."
    )

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._listener = Softmaxes(self._keep, self.logits)
        self._listening = False
        self._restore = _attend_eagerly(model)

    @property
    def maps(self) -> list[Tensor]:
        """The maps of the last forward pass, first layer first; rows sum to 1.

        Raises:
            MissingStatistic: If the model ran and no map was formed.
        """
        return self.values

    def remove(self) -> None:
        """Stops listening and gives a Hugging Face model its attention back."""
        super().remove()
        if self._restore is not None:
            model, implementation = self._restore
            model.set_attn_implementation(implementation)
            self._restore = None

    def _enter(self, model: nn.Module, *_: Any) -> None:
        super()._enter(model)
        if not self._listening:
            self._listener.__enter__()
            self._listening = True

    def _leave(self, *_: Any) -> None:
        # Also called where an earlier hook failed before the pass was entered.
        if self._listening:
            self._listener.__exit__(None, None, None)
            self._listening = False
        super()._leave()


class LogitCapture(AttentionCapture):
    """Keeps what enters each attention softmax; entries that a mask excludes are 0.

    `nn.MultiheadAttention` never shows its logits and gives none.
    """

    logits: ClassVar[bool] = True
    advice: ClassVar[str] = (
        AttentionCapture.advice + " torch.nn.MultiheadAttention shows its maps, not its logits."
    )


class HiddenCapture(Capture):
    """Keeps the output of every repeated block of the last forward pass, first block first.

    Args:
        model: A network with repeated blocks, see `find_blocks`.

    Raises:
        NoMatch: If the model has none.
    """

    advice: ClassVar[str] = "No repeated block took part in it."

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        for block in _blocks(model, "hidden states"):
            self._handles.append(block.register_forward_hook(self._output))

    @property
    def states(self) -> list[Tensor]:
        """The outputs of the blocks, (batch, tokens, width) in a transformer."""
        return self.values

    def _output(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._keep(output[0] if isinstance(output, tuple) else output)


class ActivationCapture(Capture):
    """Keeps the activations of every MLP: the input of the layer that narrows them again.

    In each repeated block this is the last linear layer that leads back to the block's width, the
    inputs of its first linear layer, from a larger one.

    Args:
        model: A network with repeated blocks, see `find_blocks`.

    Raises:
        NoMatch: If the model has no such layer.
    """

    advice: ClassVar[str] = "No MLP of a repeated block took part in it."

    def __init__(self, model: nn.Module) -> None:
        found = [_narrowing(block) for block in _blocks(model, "MLP activations")]
        if not any(found):
            raise NoMatch(
                "MLP activations were asked for, but no block has a linear layer that leads back "
                "to the block's width from a larger one."
            )
        super().__init__(model)
        for layer in found:
            if layer is not None:
                self._handles.append(layer.register_forward_pre_hook(self._input))

    def _input(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._keep(inputs[0])


CAPTURES: Mapping[str, type[Capture]] = {
    "attention": AttentionCapture,
    "attention logits": LogitCapture,
    "hidden": HiddenCapture,
    "activations": ActivationCapture,
}


def capture(name: str, model: nn.Module) -> Capture:
    """Returns a new capture on the model, by the name that a method's `captures` uses.

    Raises:
        UnknownName: If there is no such capture.
    """
    if name not in CAPTURES:
        raise UnknownName("capture", name, CAPTURES)
    return CAPTURES[name](model)


def _attend_eagerly(model: nn.Module) -> tuple[Any, str] | None:
    """Switches a Hugging Face model; returns it with what it had, or None if nothing changed."""
    owner: Any = next((m for m in model.modules() if hasattr(m, "set_attn_implementation")), None)
    if owner is None or owner.config._attn_implementation == "eager":
        return None
    before = owner.config._attn_implementation
    owner.set_attn_implementation("eager")
    return owner, before


def _blocks(model: nn.Module, what: str) -> list[nn.Module]:
    blocks: list[nn.Module] = []
    for found in find_blocks(model).values():
        blocks.extend(found)
    if not blocks:
        raise NoMatch(
            f"{what} were asked for, but the model has no repeated blocks: a list of modules of "
            "one class with at least two linear layers each."
        )
    return blocks


def _narrowing(block: nn.Module) -> nn.Module | None:
    linear = [(module, *_sizes(module)) for module in block.modules() if is_linear(module)]
    width = linear[0][1]
    back = [module for module, inputs, outputs in linear if outputs == width < inputs]
    return back[-1] if back else None


def _sizes(module: Any) -> tuple[int, int]:
    """Returns (inputs, outputs) of a linear layer."""
    first, second = module.weight.shape
    return (first, second) if is_conv1d(module) else (second, first)
