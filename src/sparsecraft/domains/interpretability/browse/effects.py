"""What a latent's direction resembles, and which tokens it makes a model say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue

ROWS_AT_ONCE = 512
_LAST_NORMS = ("norm", "ln_f", "final_layer_norm")


@dataclass(frozen=True)
class Nearest:
    """The most similar other directions of each latent, by |cosine|, best first.

    Args:
        latents: int64 (latents, places).
        cosines: (latents, places), signed.
    """

    latents: Tensor
    cosines: Tensor


def nearest(directions: Tensor, latents: Tensor, places: int = 6) -> Nearest:
    """Returns the neighbours of some latents among all directions (d_sae, d_out)."""
    unit = directions / directions.norm(dim=1, keepdim=True).clamp_min(1e-12)
    places = min(places, len(unit) - 1)
    found, cosines = [], []
    for part in latents.split(ROWS_AT_ONCE):
        product = unit[part] @ unit.T
        product[torch.arange(len(part)), part] = 0
        best = product.abs().topk(places, dim=1).indices
        found.append(best)
        cosines.append(product.gather(1, best))
    return Nearest(torch.cat(found), torch.cat(cosines))


@dataclass(frozen=True)
class LogitEffects:
    """The tokens whose logits a latent raises and lowers most, directly.

    Args:
        raised: int64 (latents, places) token ids, and `raised_by` how much a unit of the latent
            raises them, in units of the last norm's input.
        raised_by: (latents, places).
        lowered: Likewise.
        lowered_by: Likewise.
    """

    raised: Tensor
    raised_by: Tensor
    lowered: Tensor
    lowered_by: Tensor


def logit_effects(model: nn.Module, directions: Tensor, places: int = 8) -> LogitEffects | None:
    """Returns the direct effect of directions (latents, d) on the logits, or None without a head.

    It is the path past all later layers: the last norm's weights are applied, its division by the
    norm of the whole stream is not.

    Raises:
        InvalidValue: If the head reads another width.
    """
    getter: Any = getattr(model, "get_output_embeddings", None)
    head = None if getter is None else getter()
    if head is None:
        return None
    if head.weight.shape[1] != directions.shape[1]:
        raise InvalidValue(
            f"the latents write {directions.shape[1]} entries, the model's head reads "
            f"{head.weight.shape[1]}: leave the model out, or use a hook on the residual stream"
        )
    weights = head.weight.detach().float()
    last = _last_norm(model)
    through = directions.detach().float()
    if isinstance(last, nn.LayerNorm):
        through = through - through.mean(1, keepdim=True)
    weight: Tensor | None = getattr(last, "weight", None)
    if weight is not None:
        through = through * weight.detach().float()
    parts = [_extremes(part @ weights.T, places) for part in through.split(ROWS_AT_ONCE)]
    return LogitEffects(*(torch.cat(each) for each in zip(*parts, strict=True)))


def _extremes(logits: Tensor, places: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    high, low = logits.topk(places, dim=1), (-logits).topk(places, dim=1)
    return high.indices, high.values, low.indices, -low.values


def _last_norm(model: nn.Module) -> nn.Module | None:
    """Returns the norm before the head, by the names that it bears, or None."""
    base = getattr(model, "base_model", model)
    return next((found for name in _LAST_NORMS if (found := getattr(base, name, None))), None)
