"""Chooses the channels of a network to keep: by scale, by the norm of their filters, at random.

"scale" is network slimming's and MaskSparsity's choice, "filter norm" that of Li et al. (2016),
"random" the control. Whatever the score, normalisations that share channels end with one mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sparsecraft.core.channel_masks import Rule, Tie, choose_channels, tied
from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.mask import Mask
from sparsecraft.core.scores import check_finite
from sparsecraft.core.seeds import generator
from sparsecraft.model.channels import ChannelGroup, batch_norms, channel_groups
from sparsecraft.model.direct_readers import direct_readers
from sparsecraft.model.units import default_input

Score = Literal["scale", "filter norm", "random"]
SCORES: tuple[Score, ...] = get_args(Score)


def channel_mask(
    model: nn.Module,
    rule: Rule = "quantile",
    *,
    sparsity: float = 0.5,
    threshold: float = 0.01,
    energy: float = 1e-4,
    minimum: int = 1,
    score: Score = "scale",
    tie: Tie = "vote",
    groups: Sequence[ChannelGroup] | None = None,
    example_input: Any = None,
    seed: int = 0,
) -> Mask:
    """Returns which channels to keep, by the name of their BatchNorm, the same wherever tied.

    Each normalisation chooses for itself, or all together; then those that share channels are made
    one, so that the fraction removed can differ from what was asked.

    Args:
        model: The network.
        rule: See `choose_channels`, also for its numbers.
        sparsity: Fraction of channels removed, for "quantile" and "ratio".
        threshold: For "threshold".
        energy: For "energy".
        minimum: Channels that stay in every layer.
        score: "scale" of the BatchNorm, "filter norm" (the sum of magnitudes of the filter that
            feeds it) or "random".
        tie: How normalisations that share channels are made one, see `tied`.
        groups: From `channel_groups`, if they are at hand.
        example_input: A small input, guessed where that is possible.
        seed: For "random".

    Raises:
        NonFinite: If a scale or a filter is not finite.

    Reference:
        "filter norm": Li et al., 2016, arXiv 1608.08710, section 3.1.
    """
    groups = channel_groups(model, example_input) if groups is None else groups
    scores = _scores(model, score, groups, example_input, seed)
    chosen = choose_channels(
        scores, rule, sparsity=sparsity, threshold=threshold, energy=energy, minimum=minimum
    )
    masks = {name: keep.cpu() for name, keep in chosen.items()}
    for group in groups:
        pairs = [(name, index) for name, index in group.entries if name in masks]
        if not pairs:
            continue
        sizes = [scores[name].cpu()[index] for name, index in pairs]
        keep = tied([masks[name][index] for name, index in pairs], tie, sizes, minimum)
        for name, index in pairs:
            masks[name][index] = keep
    return Mask(masks)


def _scores(
    model: nn.Module, score: str, groups: Sequence[ChannelGroup], example_input: Any, seed: int
) -> dict[str, Tensor]:
    """Returns the score of each channel, by BatchNorm, of those that can be removed whole."""
    if score not in SCORES:
        raise UnknownName("score of channels", score, SCORES)
    norms = batch_norms(model)
    removable = dict.fromkeys(name for group in groups for name in group.norms)
    for name in list(removable):
        places = {int(i) for g in groups for n, index in g.entries if n == name for i in index}
        if len(places) < norms[name].weight.numel():
            del removable[name]
    if score == "scale":
        return {name: norms[name].weight.detach() for name in removable}
    sizes = {name: norms[name].weight.numel() for name in removable}
    if score == "random":
        return {
            name: torch.rand(size, generator=generator(seed, "channels", name))
            for name, size in sizes.items()
        }
    readers = direct_readers(
        model, default_input(model) if example_input is None else example_input
    )
    makers = {reader: maker for maker, found in readers.items() for reader in found}
    return {name: _filter_norm(model, name, makers.get(name)) for name in removable}


def _filter_norm(model: nn.Module, name: str, maker: str | None) -> Tensor:
    """Returns the sum of magnitudes of each filter that feeds the BatchNorm."""
    module = None if maker is None else model.get_submodule(maker)
    if not isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
        raise InvalidValue(
            f"{name}: what it normalises does not come straight from a linear or convolutional "
            "layer, so its filters cannot be ranked. Use score='scale'."
        )
    axis = 1 if getattr(module, "transposed", False) else 0
    weight = module.weight.detach()
    check_finite(weight, f"{maker}: the weight")
    return weight.abs().movedim(axis, 0).flatten(1).sum(1)
