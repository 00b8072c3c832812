"""What a latent's direction resembles, and which tokens it makes a model say."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecraft.domains.interpretability.browse.readout import Readout

ROWS_AT_ONCE = 512


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


@torch.no_grad()
def logit_effects(readout: Readout, directions: Tensor, places: int = 8) -> LogitEffects:
    """Returns the direct effect of directions (latents, d) on the logits.

    It is the way past all later layers: how the last norm scales is applied, its division by the
    norm of the whole stream is not.
    """
    weights = readout.weights.float()
    through = directions.to(weights)
    if readout.centred:
        through = through - through.mean(1, keepdim=True)
    if readout.gain is not None:
        through = through * readout.gain.to(weights)
    parts = [_extremes(part @ weights.T, places) for part in through.split(ROWS_AT_ONCE)]
    return LogitEffects(*(torch.cat(each) for each in zip(*parts, strict=True)))


def _extremes(logits: Tensor, places: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    high, low = logits.topk(places, dim=1), (-logits).topk(places, dim=1)
    return high.indices, high.values, low.indices, -low.values
