"""What benchmarks of dictionaries read of an autoencoder beside its weights: cfg, device, dtype.

SAEBench takes any object with encode, decode, W_enc, W_dec, b_enc, b_dec, device, dtype and a `cfg`
that names the model and the place. An autoencoder is such an object.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch

if TYPE_CHECKING:
    from sparsecraft.model.sae.autoencoder import SparseAutoencoder

_LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")


@dataclass(frozen=True)
class BenchConfig:
    """Where an autoencoder belongs and how large it is; a view, which changes nothing.

    Args:
        model_name: As the autoencoder's `info` says it, "" if it does not.
        hook_name: TransformerLens' name of the place where it has one, else as it was given.
        hook_layer: The block's number, or None for a place in no block.
        d_in: Entries of an activation.
        d_sae: Latents.
        architecture: The activation's class.
        context_size: Tokens that the model read in a row, or None.
        prepend_bos: Whether they began with a BOS, or None where it is not known.
        training_tokens: Activations that it was trained on, or None.
        dtype: Of the weights, such as "float32".
        device: Of the weights, such as "cpu".
        hook_head_index: None: heads are never taken one by one.
    """

    model_name: str
    hook_name: str
    hook_layer: int | None
    d_in: int
    d_sae: int
    architecture: str
    context_size: int | None
    prepend_bos: bool | None
    training_tokens: int | None
    dtype: str
    device: str
    hook_head_index: None = None


class BenchFace:
    """The part of `SparseAutoencoder` that benchmarks read.

    Example:
        >>> from sparsecraft.methods.codes.topk import TopK
        >>> from sparsecraft.model.sae import SparseAutoencoder
        >>> sae = SparseAutoencoder(8, 32, TopK(k=4))
        >>> sae.info.update(model="gpt2", hook="blocks.5.hook_resid_post")
        >>> sae.cfg.model_name, sae.cfg.hook_layer, sae.cfg.d_sae, sae.dtype
        ('gpt2', 5, 32, torch.float32)
    """

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return cast("SparseAutoencoder", self).W_dec.dtype

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return cast("SparseAutoencoder", self).W_dec.device

    @property
    def cfg(self) -> BenchConfig:
        """Where the autoencoder belongs, and its sizes, as they are now."""
        sae = cast("SparseAutoencoder", self)
        info: Mapping[str, Any] = sae.info
        hook = str(info.get("lens_hook") or info.get("hook") or "")
        layer = _LAYER.search(hook)
        return BenchConfig(
            model_name=str(info.get("model") or ""),
            hook_name=hook,
            hook_layer=None if layer is None else int(layer[1]),
            d_in=sae.d_in,
            d_sae=sae.d_sae,
            architecture=type(sae.activation).__name__,
            context_size=info.get("context"),
            prepend_bos=info.get("prepend_bos"),
            training_tokens=info.get("training", {}).get("tokens"),
            dtype=str(sae.dtype).removeprefix("torch."),
            device=str(sae.device),
        )

    def __getattr__(self, name: str) -> Any:
        # A tied encoder has no weights of its own; what it multiplies with is still to be had.
        if name == "W_enc" and self.tied:
            return cast("SparseAutoencoder", self).encoder()
        return super().__getattr__(name)  # type: ignore[misc]  # of torch.nn.Module
