"""What a harvest is asked for, checked; and what must be equal for it to go on."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.model.digests import digest

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CONTEXT = 128
"""Tokens that texts are cut into where nothing is said."""
Loss = Callable[[Any, Mapping[str, Any]], Tensor]
Progress = Callable[[str, int, int], None]
_VALUES = 64  # of each weight, in the digest of a model


@dataclass(frozen=True, kw_only=True)
class HarvestSettings:
    """The options of `ActivationStore`, which explains them."""

    texts: Iterable[str] | str | Path | None = None
    tokens: Tensor | None = None
    batches: Iterable[Any] | None = None
    tokenizer: Any = None
    context: int | None = None
    skip_special: bool | Collection[int] = True
    skip_first: int = 0
    prepend_bos: bool | None = None
    gradients: bool = False
    loss: Loss | None = None
    rows: int | None = None
    dtype: torch.dtype = torch.float32
    batch_size: int = 32
    skip_non_finite: bool = False
    shard_bytes: int = 2**28
    progress: Progress | None = None

    def __post_init__(self) -> None:
        for name in ("context", "batch_size", "shard_bytes", "rows"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise InvalidValue(
                    f"{name}={value!r} is not allowed: give a whole number of at least 1"
                )
        if self.dtype not in DTYPES.values():
            raise InvalidValue(
                f"dtype={self.dtype} is not allowed: give one of {', '.join(DTYPES)}"
            )
        given = [n for n in ("texts", "tokens", "batches") if getattr(self, n) is not None]
        if len(given) != 1:
            raise InvalidValue(
                f"{' and '.join(given) or 'nothing'} was given for the model to read: give texts, "
                "tokens or batches"
            )
        self._check_reading()

    @property
    def length(self) -> int | None:
        """Tokens of a context; None for batches, which have the length that they come with."""
        if self.texts is not None:
            return self.context or CONTEXT
        return None if self.tokens is None else self.tokens.shape[1]

    def _check_reading(self) -> None:
        """Raises for options of texts that nothing reads, and positions that no context has."""
        tokens = self.tokens
        if tokens is not None and (
            tokens.dim() != 2 or tokens.is_floating_point() or not tokens.numel()
        ):
            raise InvalidValue(
                f"tokens must be whole numbers (contexts, tokens); {tokens.dtype} "
                f"{tuple(tokens.shape)} was given"
            )
        if self.texts is None and self.prepend_bos is not None:
            raise InvalidValue(
                f"prepend_bos={self.prepend_bos} is for texts: tokens and batches are read as they "
                "are. Put the BOS into them, and leave prepend_bos out."
            )
        if self.texts is None and self.context not in (None, self.length):
            have = "their own" if self.length is None else f"{self.length} tokens"
            raise InvalidValue(
                f"context={self.context} is for texts: the contexts given have {have}, and are not "
                "cut. Leave context out."
            )
        most = math.inf if self.length is None else self.length - 1
        if not 0 <= self.skip_first <= most:
            allowed = "0 or more" if self.length is None else f"0 to {most}, less than context"
            raise InvalidValue(f"skip_first={self.skip_first} is not allowed: give {allowed}")

    def plain(self, special: Collection[int]) -> dict[str, Any]:
        """Returns what a harvest that goes on must have in common with its beginning.

        The size of shards may change, and rows that are not finite may be left out from there on.
        """
        return {
            "context": self.length,
            "special_ids": sorted(special),
            "skip_first": self.skip_first,
            "prepend_bos": self.prepend_bos,
            "gradients": self.gradients,
            "loss": _name(self.loss) if self.gradients else None,
            "rows": self.rows,
            "dtype": str(self.dtype).removeprefix("torch."),
            "batch_size": self.batch_size,
        }


def model_facts(model: nn.Module) -> dict[str, str]:
    """Returns the model's name, class and digest; the latter sees some values of every weight."""
    config = getattr(model, "config", None)
    return {
        "model": str(getattr(config, "name_or_path", "") or getattr(config, "_name_or_path", "")),
        "model_class": type(model).__name__,
        "model_digest": digest(
            (f"{name} {tuple(value.shape)}", _some(value))
            for name, value in model.state_dict().items()
            if isinstance(value, Tensor)
        ),
    }


def _some(value: Tensor) -> Tensor:
    flat = value.detach().reshape(-1)
    if len(flat) > _VALUES:
        flat = flat[torch.linspace(0, len(flat) - 1, _VALUES, device=flat.device).long()]
    return flat


def _name(loss: Loss | None) -> str:
    if loss is None:
        return "next token, summed"
    return f"{getattr(loss, '__module__', '')}.{getattr(loss, '__qualname__', type(loss).__name__)}"
