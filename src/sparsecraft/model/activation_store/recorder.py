"""Runs a model over a batch and takes the activations of some places, with gradients if asked.

The forward pass ends where the last place has been reached. For gradients the model's weights are
frozen, the activation becomes a leaf, and one backward pass through the layers above gives the
gradients of all positions at once (card of paper 07).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.model.activation_store.inputs import Inputs
from sparsecraft.model.activation_store.settings import Loss
from sparsecraft.model.hook_points import HookPoint


@dataclass(frozen=True)
class Recorded:
    """What a batch gave.

    Args:
        values: By place, (contexts, positions, width), on the CPU.
        gradients: Likewise, or empty.
    """

    values: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]


class _Reached(Exception):
    """Every place has been reached: the rest of the model need not run."""


class Recorder:
    """Takes activations; made by `recording`.

    Args:
        model: In evaluation mode, and with frozen weights where gradients are asked for.
        points: The places.
        gradients: Those of `points` for which gradients are asked.
        loss: From the output and the batch to a scalar; None for next-token cross-entropy.
    """

    def __init__(
        self,
        model: nn.Module,
        points: Sequence[HookPoint],
        gradients: Sequence[HookPoint] = (),
        loss: Loss | None = None,
    ) -> None:
        self._model, self._points, self._loss = model, points, loss
        self._wanted = {point.place for point in gradients}
        self._device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self._checked = False

    def run(self, inputs: Inputs, kept: Tensor | None) -> Recorded:
        """Returns the activations of a batch.

        Args:
            inputs: The batch.
            kept: bool (contexts, tokens), True where rows are kept; the loss counts only these.

        Raises:
            InvalidValue: If a place is not reached or more than once, if its shape is not that of
                a sequence, or if there is no gradient.
        """
        seen: dict[str, list[Tensor]] = {point.place: [] for point in self._points}
        handles = [self._watch(point, seen) for point in self._points]
        output = None
        try:
            with torch.set_grad_enabled(bool(self._wanted)):
                output = self._call(inputs.call)
        except _Reached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        for point in self._points:
            _check_calls(point, len(seen[point.place]))
        self._checked = True
        found = {place: values[0] for place, values in seen.items()}
        gradients = self._gradients(found, output, inputs, kept) if self._wanted else {}
        shaped = {point.place: _as_rows(point, found, inputs) for point in self._points}
        return Recorded(
            shaped, {place: _like(grad, shaped[place]) for place, grad in gradients.items()}
        )

    def _watch(self, point: HookPoint, seen: dict[str, list[Tensor]]) -> Any:
        def note(x: Tensor) -> None:
            seen[point.place].append(x)
            if self._checked and not self._wanted and all(seen.values()):
                raise _Reached

        def make_leaf(x: Tensor) -> Tensor:
            x = x if x.requires_grad else x.detach().requires_grad_()
            seen[point.place].append(x)
            return x

        if point.place in self._wanted:
            return point.replace(make_leaf)
        return point.watch(note)

    def _call(self, call: Mapping[str, Any] | Tensor) -> Any:
        if isinstance(call, Tensor):
            return self._model(call.to(self._device))
        moved = {k: v.to(self._device) if isinstance(v, Tensor) else v for k, v in call.items()}
        if getattr(getattr(self._model, "config", None), "use_cache", False):
            moved["use_cache"] = False
        return self._model(**moved)

    def _gradients(
        self, found: Mapping[str, Tensor], output: Any, inputs: Inputs, kept: Tensor | None
    ) -> dict[str, Tensor]:
        call = {"inputs": inputs.call} if isinstance(inputs.call, Tensor) else inputs.call
        batch = {**call, "kept": kept}
        with torch.enable_grad():
            total = (self._loss or next_token_loss)(output, batch)
        if not isinstance(total, Tensor) or total.numel() != 1:
            raise InvalidValue("loss must give one number for the batch, a tensor of one element")
        if not total.requires_grad:
            raise InvalidValue(
                "the loss does not depend on the activations by way of gradients: the model or the "
                "loss runs under no_grad, detaches, or the place is behind what the loss reads"
            )
        wanted = [point.place for point in self._points if point.place in self._wanted]
        gradients = torch.autograd.grad(total, [found[p] for p in wanted], allow_unused=True)
        for place, gradient in zip(wanted, gradients, strict=True):
            if gradient is None:
                raise InvalidValue(f"the loss does not depend on the activations at {place}")
        return dict(zip(wanted, gradients, strict=True))


def next_token_loss(output: Any, batch: Mapping[str, Any]) -> Tensor:
    """Returns the cross-entropy of each next token, summed; special tokens are no targets.

    The sum makes the gradient of a token independent of how many others are in the batch.

    Args:
        output: Logits (contexts, tokens, vocabulary), or an object with `logits`.
        batch: With `input_ids`, and `kept`, bool (contexts, tokens) or None.
    """
    logits = output if isinstance(output, Tensor) else output.logits
    ids = batch["input_ids"] if "input_ids" in batch else batch["inputs"]
    targets = ids[:, 1:].to(logits.device)
    losses = F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), targets.flatten(), reduction="none"
    )
    kept = batch.get("kept")
    return losses.sum() if kept is None else losses[kept[:, 1:].flatten().to(losses.device)].sum()


@contextmanager
def recording(
    model: nn.Module,
    points: Sequence[HookPoint],
    *,
    gradients: Sequence[HookPoint] = (),
    loss: Loss | None = None,
) -> Iterator[Recorder]:
    """Gives a recorder; the model's modes and what of it is trained are as before at the end.

    Raises:
        InvalidValue: If gradients are asked for under no_grad, or without a loss where none is
            plain.
    """
    if gradients:
        _check_gradients(model, loss)
    modes = {module: module.training for module in model.modules()}
    trained = [p for p in model.parameters() if p.requires_grad] if gradients else []
    model.eval()
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield Recorder(model, points, gradients, loss)
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter in trained:
            parameter.requires_grad_(True)


def _check_gradients(model: nn.Module, loss: Loss | None) -> None:
    if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        raise InvalidValue(
            "gradients=True was asked for under torch.no_grad() or inference_mode(): call it "
            "outside of them; the model's weights get no gradients either way"
        )
    name = type(model).__name__
    if loss is None and not name.endswith(("ForCausalLM", "LMHeadModel")):
        raise InvalidValue(
            f"gradients=True: {name} is no causal language model, so its loss is not known: give "
            "loss=, a function of the model's output and the batch that returns one number"
        )


def _check_calls(point: HookPoint, calls: int) -> None:
    kind = type(point.module).__name__
    if calls == 0:
        raise InvalidValue(
            f"{point.name}: this {kind} is not called when the model runs on this input (a list of "
            "modules never is): name a module inside it, or one that takes part"
        )
    if calls > 1:
        raise InvalidValue(
            f"{point.name}: this {kind} is called {calls} times in one pass, so its activations "
            "are not one place: name a module that is called once"
        )


def _as_rows(point: HookPoint, found: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
    """Returns the activation as (contexts, positions, width) on the CPU."""
    x = found[point.place].detach().cpu()
    if not x.is_floating_point():
        raise InvalidValue(f"{point.name}: activations of type {x.dtype}: name a floating tensor")
    if x.dim() == 3:
        return x
    if x.dim() == 2:  # flattened tokens (OPT), or one vector for each context
        tokens = inputs.tokens
        flat = tokens is not None and len(x) == tokens.numel()
        return x.reshape(*tokens.shape, -1) if flat and tokens is not None else x[:, None]
    raise InvalidValue(
        f"{point.name}: an activation of shape {tuple(x.shape)} is no sequence of vectors: it must "
        "be (contexts, positions, width) or (contexts, width)"
    )


def _like(gradient: Tensor, value: Tensor) -> Tensor:
    return gradient.detach().cpu().reshape(value.shape)
