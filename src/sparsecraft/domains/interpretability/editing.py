"""Edits of activations by few latents: towards what a changed prompt would have given.

Both edits are Makelov et al.'s (2024): one greedy and blind to what latents mean, one that takes
latents out for the old value of an attribute and puts others in for the new, by their F1. Codes may
be signed. Codes and directions are in the activation's own units, so no scale is to be undone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue
from sparsecraft.domains.interpretability.feature_scores import feature_weights, removed_weight
from sparsecraft.domains.interpretability.latent_amplitudes import amplitudes, directions
from sparsecraft.model.sae import SparseAutoencoder


@dataclass(frozen=True)
class Edit:
    """Activations after an edit.

    Args:
        edited: (rows, d).
        removed: int64 (rows, k), latents whose amplitude was changed or taken out.
        added: int64 (rows, k), latents that were put in; the same as `removed` where an edit moves
            latents from one amplitude to another.
        weight: (rows,), the share of the reconstruction that the removed latents made.
        distances: (rows, k), after each latent how far the activation is from its target; only of
            greedy edits.
        changed: int64 (rows,), how many latents have another amplitude than before; None: all that
            `removed` and `added` name.
    """

    edited: Tensor
    removed: Tensor
    added: Tensor
    weight: Tensor
    distances: Tensor | None = None
    changed: Tensor | None = None


@torch.no_grad()
def greedy_edit(
    sae: SparseAutoencoder,
    x: Tensor,
    x_changed: Tensor,
    k: int,
    *,
    toward: str = "activation",
) -> Edit:
    """Returns x with k latents set to what they are in the changed prompt, chosen greedily.

    Each step takes the latent that brings the activation nearest to its target, whatever the latent
    means.

    Args:
        sae: The dictionary.
        x: (rows, d).
        x_changed: (rows, d), the activations of the changed prompts.
        k: Latents to move.
        toward: "activation": the target is x_changed; "reconstruction": what is approached is the
            difference of the two reconstructions.

    Raises:
        InvalidValue: If shapes differ, or k is not allowed.

    Reference:
        Makelov et al., 2024, arXiv 2405.08366, section 4, "agnostic" editing.
    """
    _check(sae, x, x_changed, k)
    if toward not in ("activation", "reconstruction"):
        raise InvalidValue(f"toward={toward!r} is not allowed: activation or reconstruction")
    before, after = amplitudes(sae, x), amplitudes(sae, x_changed)
    d = directions(sae)
    step = after - before
    left = x_changed - x if toward == "activation" else step @ d
    norms = d.square().sum(1)
    edited, chosen, distances = x.clone(), [], []
    moves = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    for _ in range(k):
        # ||left - c d||^2 = ||left||^2 + c^2 ||d||^2 - 2 c <d, left>
        change = step.square() * norms - 2 * step * (left @ d.T)
        best = change.argmin(1, keepdim=True)
        moved = step.gather(1, best) * d[best[:, 0]]
        edited, left = edited + moved, left - moved
        # Once a latent has moved its step is zero, so that it counts once.
        moves += step.gather(1, best)[:, 0] != 0
        step = step.scatter(1, best, 0.0)
        chosen.append(best)
        distances.append(left.norm(dim=1, keepdim=True))
    removed = torch.cat(chosen, 1)
    weight = removed_weight(feature_weights(before, d), _distinct_only(removed, before))
    return Edit(edited, removed, removed, weight, torch.cat(distances, 1), moves)


@torch.no_grad()
def f1_edit(
    sae: SparseAutoencoder,
    x: Tensor,
    x_changed: Tensor,
    f1: Tensor,
    old: Tensor,
    new: Tensor,
    k: int,
) -> Edit:
    """Returns x without k latents of the old value and with k latents of the new one.

    From each row the k latents with the highest F1 for its old value are taken out, of those that
    are active on this very example, and the k highest for the new value are put in that are active
    on the changed prompt, as strong as they are there. Where fewer are active, fewer are changed.

    Args:
        sae: The dictionary.
        x: (rows, d).
        x_changed: (rows, d), the activations of the changed prompts.
        f1: (d_sae, values), of `feature_f1` for the attribute, from other prompts.
        old: int64 (rows,), each row's value of the attribute.
        new: int64 (rows,), its value in the changed prompt.
        k: Latents taken out, and put in.

    Raises:
        InvalidValue: If shapes differ, or k is not allowed.

    Reference:
        Makelov et al., 2024, arXiv 2405.08366, section 4, edits by interpretation.
    """
    _check(sae, x, x_changed, k)
    before, after = amplitudes(sae, x), amplitudes(sae, x_changed)
    d, by_value = directions(sae), f1.T.to(before.device)
    removed, out = _ranked_and_active(before, by_value[old], k)
    added, put = _ranked_and_active(after, by_value[new], k)
    edited = x - _sum(out, removed, d) + _sum(put, added, d)
    # An inactive latent, which fills up where fewer are active, has weight 0.
    weight = removed_weight(feature_weights(before, d), removed)
    # A latent that goes and comes again changes only if it comes with another amplitude.
    change = torch.zeros_like(before).scatter_add(1, removed, -out).scatter_add(1, added, put)
    return Edit(edited, removed, added, weight, changed=(change != 0).sum(1))


def _ranked_and_active(code: Tensor, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the k best-scored active latents of each row, and their amplitudes."""
    ranked = scores.nan_to_num(0.0).masked_fill(code == 0, -torch.inf)
    # Of equal scores the lower latent goes first, so that an edit does not depend on the machine.
    places = ranked.argsort(dim=1, descending=True, stable=True)[:, :k]
    return places, code.gather(1, places)


def _sum(values: Tensor, places: Tensor, d: Tensor) -> Tensor:
    return (values[:, :, None] * d[places]).sum(1)


def _distinct_only(places: Tensor, code: Tensor) -> Tensor:
    """Returns places in which a latent that stands again is replaced by one of amplitude zero."""
    again = torch.zeros_like(places, dtype=torch.bool)
    for later in range(1, places.shape[1]):
        again[:, later] = (places[:, :later] == places[:, later : later + 1]).any(1)
    if not bool(again.any()):
        return places
    idle = (code == 0).double().argmax(1, keepdim=True).expand_as(places)
    return torch.where(again, idle, places)


def _check(sae: SparseAutoencoder, x: Tensor, x_changed: Tensor, k: int) -> None:
    if x.shape != x_changed.shape:
        raise InvalidValue(
            f"activations {tuple(x.shape)} and those of the changed prompts "
            f"{tuple(x_changed.shape)} must be of one shape"
        )
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= sae.d_sae:
        raise InvalidValue(
            f"k={k!r} is not allowed: give a whole number from 1 to the number of latents, "
            f"{sae.d_sae}"
        )
