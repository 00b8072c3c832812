"""What a causal model predicts at the tokens of a store, with other activations in their place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.model.hook_points import hook_point

if TYPE_CHECKING:
    from sparsecraft.model.activation_store import ActivationStore


@dataclass(frozen=True)
class Contexts:
    """Windows of text, and which of their tokens count.

    Args:
        tokens: int64 (contexts, length), -1 for padding.
        kept: bool (contexts, length), the tokens whose activations a store holds.
    """

    tokens: Tensor
    kept: Tensor

    @classmethod
    def of(cls, store: ActivationStore) -> Contexts:
        """Returns the contexts of a store in which tokens count.

        Raises:
            InvalidValue: If it was not harvested from a text, or no token has one behind it.
        """
        tokens, place = store.tokens, store.place(torch.arange(len(store)))
        if tokens is None or place is None:
            raise InvalidValue(
                "this store has no token ids, so the model cannot run on its text: make it with "
                "ActivationStore(model, at=..., texts=...)"
            )
        kept = torch.zeros(tokens.shape, dtype=torch.bool)
        kept[place] = True
        whole = cls(tokens.long(), kept)
        used = whole.counted.any(1)
        if not bool(used.any()):
            raise InvalidValue(
                "no token of the store has one behind it, so nothing is predicted: give longer "
                "contexts"
            )
        return whole.take(used, torch.device("cpu"))

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, index: Tensor, device: torch.device) -> Contexts:
        """Returns some contexts, on a device."""
        return Contexts(self.tokens[index].to(device), self.kept[index].to(device))

    @property
    def counted(self) -> Tensor:
        """Marks (contexts, length - 1): kept tokens with a token behind them."""
        return self.kept[:, :-1] & (self.tokens[:, 1:] >= 0)

    @property
    def following(self) -> Tensor:
        """int64 (counted,): the tokens behind those that count."""
        return self.tokens[:, 1:][self.counted]


def log_predictions(model: nn.Module, texts: Contexts) -> Tensor:
    """Returns (counted, vocabulary): log probabilities of what follows the tokens that count.

    Raises:
        InvalidValue: If the model gives no logits for every token.
    """
    logits = _logits(model, texts.tokens)
    return logits[:, :-1][texts.counted.to(logits.device)].float().log_softmax(-1)


@contextmanager
def replaced(
    model: nn.Module,
    at: str,
    to: str | None,
    kept: Tensor,
    write: Callable[[Tensor], Tensor],
) -> Iterator[None]:
    """Within the block, activations are what `write` makes of those at `at`, in kept places.

    Args:
        model: The model.
        at: The hook point that is read.
        to: The one that is written, or None for the same.
        kept: bool (contexts, length).
        write: From rows (n, d_in) to rows (n, d_out).
    """
    read: list[Tensor] = []

    def put(y: Tensor) -> Tensor:
        x, where = (read.pop() if to else y), kept.to(y.device).reshape(y.shape[:-1])
        out = y.clone()
        out[where] = write(x[where.reshape(x.shape[:-1])]).to(y)
        return out

    handles = [hook_point(model, to or at).replace(put)]
    if to:
        handles.append(hook_point(model, at).watch(lambda x: read.append(x)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Gives a block in which a model is evaluated and none of it is trained; then it is as before.

    Raises:
        InvalidValue: In inference mode, where nothing can be trained.
    """
    if torch.is_inference_mode_enabled():
        raise InvalidValue(
            "in torch.inference_mode() there are no gradients to train by: call this outside of it"
        )
    modes = {module: module.training for module in model.modules()}
    trained = [p for p in model.parameters() if p.requires_grad]
    model.eval()
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter in trained:
            parameter.requires_grad_(True)


@torch.no_grad()
def check_causal(model: nn.Module, texts: Contexts) -> None:
    """Raises InvalidValue if predictions change with the tokens behind them.

    Args:
        model: In evaluation mode.
        texts: Of which the first is read.
    """
    tokens = texts.tokens[:1, : int((texts.tokens[0] >= 0).sum())]
    changed = tokens.clone()
    # Another token of the same text, so that it is in the vocabulary.
    others = tokens[tokens != tokens[0, -1]]
    if not len(others):
        return
    changed[0, -1] = others[0]
    before, after = (_logits(model, each)[:, :-1] for each in (tokens, changed))
    if not torch.allclose(before, after, atol=1e-3, rtol=1e-3, equal_nan=True):
        raise InvalidValue(
            f"the predictions of {type(model).__name__} see the tokens behind them, so it has no "
            "next token to be trained on: end-to-end training is for causal language models"
        )


def _logits(model: nn.Module, tokens: Tensor) -> Tensor:
    """Returns (contexts, length, vocabulary)."""
    there = tokens >= 0
    ids = tokens.clamp_min(0)
    config = getattr(model, "config", None)
    options: dict[str, Any] = {"use_cache": False} if getattr(config, "use_cache", False) else {}
    if not bool(there.all()):
        options["attention_mask"] = there.long()
    output = model(ids) if config is None else model(input_ids=ids, **options)
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.dim() != 3:
        raise InvalidValue(
            f"{type(model).__name__} gives no logits for every token: end-to-end training is for "
            "causal language models, such as those with ForCausalLM in their name"
        )
    return logits
