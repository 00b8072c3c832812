"""Which channels go, decided by the scales of their batch normalisations, and what ties add.

Scales are vectors (channels,) by the name of their BatchNorm; a mask is True where a channel is
kept. Four rules choose: a fixed threshold, a share of the energy, the smallest scales of the whole
model, the smallest of each layer. In every layer at least `minimum` channels stay, those of the
largest scales and, where these tie, the first.

Channels whose outputs are added live and die together: each of their normalisations has an opinion,
and a `tie` makes one of them.

Reference:
    Jiang et al., 2022, arXiv 2201.06776; Liu et al., 2017, arXiv 1708.06519 (network slimming).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from sparsecraft.core.errors import BudgetError, InvalidValue, UnknownName, check_sparsity
from sparsecraft.core.mask import count
from sparsecraft.core.scores import check_finite
from sparsecraft.kernels.selection import keep_largest

Rule = Literal["quantile", "ratio", "threshold", "energy"]
RULES: tuple[Rule, ...] = get_args(Rule)
Tie = Literal["vote", "intersection"]
TIES: tuple[Tie, ...] = get_args(Tie)
Scales = Mapping[str, Tensor]

# A layer whose largest scale is below this has no channel worth keeping.
_DEAD = 1e-3


def choose_channels(
    scales: Scales,
    rule: Rule = "quantile",
    *,
    sparsity: float = 0.5,
    threshold: float = 0.01,
    energy: float = 1e-4,
    minimum: int = 1,
) -> dict[str, Tensor]:
    """Returns which channels are kept, by the name of their BatchNorm.

    Args:
        scales: (channels,) by name; their magnitude decides. Any other score does as well, such as
            the norm of the filters.
        rule: "quantile" removes the smallest of all layers together, "ratio" the same fraction of
            each layer, "threshold" those of magnitude `threshold` or less, "energy" those that
            together hold no more than `energy` of a layer's squares.
        sparsity: Fraction removed, for "quantile" and "ratio"; their counts are exact.
        threshold: Largest magnitude that goes, for "threshold".
        energy: Fraction of the sum of squares, for "energy".
        minimum: Channels that stay in every layer, whatever the rule says.

    Raises:
        NonFinite: If a scale is NaN or infinite.
        InvalidValue: If a number is outside what is allowed.
        BudgetError: If the minimum of all layers is more than the sparsity leaves.

    Example:
        >>> scales = {"a": torch.tensor([0.9, -0.1, 0.5]), "b": torch.tensor([0.2, 0.3])}
        >>> choose_channels(scales, sparsity=0.6)
        {'a': tensor([ True, False, False]), 'b': tensor([False,  True])}
    """
    check_rule(rule, sparsity=sparsity, threshold=threshold, energy=energy, minimum=minimum)
    for name, scale in scales.items():
        check_finite(scale, f"{name}: the scale")
    if rule == "quantile":
        return _smallest_of_all(scales, sparsity, minimum)
    kept = {}
    for name, scale in scales.items():
        if rule == "ratio":
            keep = keep_largest([scale], count(scale.numel(), 1 - sparsity), absolute=True)[0]
        else:
            limit = threshold if rule == "threshold" else energy_threshold(scale, energy)
            keep = scale.abs() > limit
        kept[name] = guarded(keep, scale, minimum)
    return kept


def check_rule(
    rule: str, *, sparsity: float, threshold: float, energy: float, minimum: int
) -> None:
    """Raises UnknownName or InvalidValue unless the rule and its numbers are allowed."""
    if rule not in RULES:
        raise UnknownName("rule for channels", rule, RULES)
    check_sparsity(sparsity)
    if not threshold >= 0:
        raise InvalidValue(f"threshold={threshold!r} is not allowed: a magnitude is at least 0")
    if not 0 < energy < 1:
        raise InvalidValue(
            f"energy={energy!r} is not allowed: it is the fraction of the sum of squares that may "
            "go, in (0, 1)"
        )
    if minimum < 0:
        raise InvalidValue(f"minimum={minimum} is not allowed: at least 0 channels stay")


def check_mask(name: str, keep: Tensor, channels: int) -> Tensor:
    """Returns the mask of a layer, or raises InvalidValue unless it is bool (channels,)."""
    if keep.dtype != torch.bool or tuple(keep.shape) != (channels,):
        raise InvalidValue(
            f"{name}: the mask is {keep.dtype} of shape {tuple(keep.shape)}; the layer has "
            f"{channels} channels, so give a torch.bool tensor of shape ({channels},), True for "
            "each channel that is kept."
        )
    return keep


def energy_threshold(scale: Tensor, energy: float = 1e-4) -> float:
    """Returns the magnitude up to which channels go, so that they hold little of the squares.

    Magnitudes are added up from the smallest on; the first whose running sum of squares exceeds
    the fraction `energy` of the total is kept, and the threshold lies midway between it and the
    one before. It is 0 if that is the very first, and 1 if the layer's largest scale is below
    0.001, which removes all that a guard does not keep.

    Args:
        scale: (channels,).
        energy: Fraction of the sum of squares.

    Example:
        >>> energy_threshold(torch.tensor([0.8, 0.0, -0.2, 0.1]), 0.05)
        0.15000000596046448
    """
    magnitudes = scale.detach().abs().sort().values
    if float(magnitudes[-1]) < _DEAD:
        return 1.0
    running = magnitudes.square().cumsum(0)
    first = int((running > energy * running[-1]).nonzero()[0])
    return float((magnitudes[first - 1] + magnitudes[first]) / 2) if first else 0.0


def guarded(keep: Tensor, scale: Tensor, minimum: int = 1) -> Tensor:
    """Returns the mask with the largest scales kept as well where it keeps too few channels.

    Args:
        keep: bool (channels,).
        scale: (channels,); its magnitude ranks, and of equal ones the first comes first.
        minimum: How many channels stay, at least; a layer with fewer stays whole.

    Example:
        >>> guarded(torch.zeros(3, dtype=torch.bool), torch.tensor([0.1, -0.7, 0.7]))
        tensor([False,  True, False])
    """
    if int(keep.sum()) >= minimum:
        return keep
    return keep | keep_largest([scale], min(minimum, scale.numel()), absolute=True)[0]


def tied(
    keeps: Sequence[Tensor], tie: Tie = "vote", scales: Sequence[Tensor] = (), minimum: int = 1
) -> Tensor:
    """Returns the one mask of channels that several normalisations share.

    "intersection" removes what all of them would remove. "vote" begins there and asks for fewer
    and fewer votes until at least as many channels go as the most careful of them removes, so that
    a group is never less sparse than its densest member wants.

    Args:
        keeps: bool (channels,) of each normalisation.
        tie: "vote" or "intersection".
        scales: (channels,) of each; their summed magnitude decides what stays if the vote leaves
            less than the minimum. All ones if left out.
        minimum: How many channels stay, at least.

    Raises:
        UnknownName: If the tie is none.
        InvalidValue: If the masks differ in length.

    Example:
        >>> one, two = torch.tensor([True, False, True]), torch.tensor([False, True, True])
        >>> tied([one, two]), tied([one, two], "intersection")
        (tensor([False, False,  True]), tensor([True, True, True]))

    Reference:
        Jiang et al., 2022, arXiv 2201.06776, official code.
    """
    if tie not in TIES:
        raise UnknownName("tie of channels", tie, TIES)
    sizes = {keep.numel() for keep in keeps}
    if len(sizes) != 1:
        raise InvalidValue(f"masks of {sorted(sizes)} channels cannot share channels: give equals")
    gone = torch.stack([~keep for keep in keeps])
    votes, least = gone.sum(0), int(gone.sum(1).min())
    needed = len(keeps)
    if tie == "vote":
        while int((votes >= needed).sum()) < least:
            needed -= 1
    keep = votes < needed
    if not scales:
        return guarded(keep, torch.ones_like(votes, dtype=torch.float32), minimum)
    return guarded(keep, torch.stack([scale.abs() for scale in scales]).sum(0), minimum)


def _smallest_of_all(scales: Scales, sparsity: float, minimum: int) -> dict[str, Tensor]:
    """Returns the masks of the largest scales over all layers, the minimum of each among them."""
    kept = count(sum(scale.numel() for scale in scales.values()), 1 - sparsity)
    least = sum(min(minimum, scale.numel()) for scale in scales.values())
    if kept < least:
        raise BudgetError(
            f"sparsity={sparsity:g} keeps {kept} channels, but minimum={minimum} in each of "
            f"{len(scales)} layers keeps {least}. Lower the sparsity or the minimum."
        )
    ranks = []
    for scale in scales.values():
        sure = guarded(torch.zeros_like(scale, dtype=torch.bool), scale, minimum)
        ranks.append(scale.detach().abs().masked_fill(sure, torch.inf))
    return dict(zip(scales, keep_largest(ranks, kept), strict=True))
