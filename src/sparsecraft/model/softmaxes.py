"""Sees attention maps where they arise: at the softmax of queries times keys.

A function mode is in force while a model runs. It sees every softmax over the last axis of a
four-dimensional tensor. Fused products never form the map: PyTorch's own
(`scaled_dot_product_attention`) is computed in steps instead, and `MultiheadAttention` is asked for
the weights of all heads, which it gives after its dropout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Softmaxes(TorchFunctionMode):
    """Sees every attention softmax that is computed while it is in force.

    Args:
        keep: Called with each map, before dropout.
        logits: Whether it is called with what enters the softmax instead, 0 where masked.
    """

    def __init__(self, keep: Callable[[Tensor], None], logits: bool) -> None:
        super().__init__()
        self.keep = keep
        self.logits = logits

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _attend(self._softmax, *args, **kwargs)
        if func is F.multi_head_attention_forward and not self.logits:
            return self._multi_head(args, kwargs)
        if func in _SOFTMAXES:
            return self._softmax(func, *args, **kwargs)
        return func(*args, **kwargs)

    def _softmax(self, func: Any, *args: Any, **kwargs: Any) -> Tensor:
        found: Tensor = func(*args, **kwargs)
        logits = args[0] if args else kwargs["input"]
        axis = args[1] if len(args) > 1 else kwargs.get("dim")
        if found.dim() == 4 and axis in (-1, 3):
            self.keep(logits.masked_fill(found == 0, 0) if self.logits else found)
        return found

    def _multi_head(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Returns what was asked of `multi_head_attention_forward`, having seen all heads."""
        asked = kwargs.get("need_weights", True)
        averaged = kwargs.get("average_attn_weights", True)
        every = {**kwargs, "need_weights": True, "average_attn_weights": False}
        found: tuple[Tensor, Any] = F.multi_head_attention_forward(*args, **every)
        output, heads = found
        self.keep(heads if heads.dim() == 4 else heads.unsqueeze(0))
        if not asked:
            return output, None
        return output, heads.mean(-3) if averaged else heads


_SOFTMAXES = frozenset({F.softmax, torch.softmax, Tensor.softmax})


def _attend(
    softmax: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Returns `scaled_dot_product_attention` computed in steps, which its fused kernels skip."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], dim=-3)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    logits = query @ key.transpose(-2, -1) * scale
    if is_causal:
        attn_mask = logits.new_ones(logits.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        logits = logits.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        logits = logits + attn_mask
    maps = softmax(F.softmax, logits, dim=-1)
    return F.dropout(maps, dropout_p, training=dropout_p > 0) @ value
