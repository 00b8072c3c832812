"""Dynamic sparse no training (DSnoT): better masks from the statistics of a layer's input alone.

Zhang et al. (2023) take a pruned layer and swap, row by row, pruned against kept weights so that
the output that pruning is expected to take away goes to zero; no weight changes. Weight w_rj is
expected to contribute C_rj = w_rj S_j, with S_j the mean of the input over sequences, summed over
their tokens. What is grown contributes much and steadily (C over the variance V), what is given up
is cheap by Wanda's score, and the two together make the expected error smaller.

Where the official code walks on to entries that are no candidates, and loses count, a row ends
here; so any number of cycles may be asked for. Its SparseGPT start never sees the Hessian; here
the mathematics of the paper are followed. An input that does not vary within sequences (V_j = 0)
counts as steady as the steadiest of the others, where the official code divides by zero.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.scores import check_finite
from sparsecraft.kernels.mask_swaps import Stop, Swaps, swap_in_groups, swap_in_rows

StopRule = Literal["same_sign", "threshold"]
STOPS: tuple[StopRule, ...] = get_args(StopRule)
_FLOAT = torch.finfo(torch.float32)


def dsnot_rows(
    weight: Tensor,
    sums: Tensor,
    squares: Tensor,
    variances: Tensor,
    keep: Tensor,
    *,
    cycles: int = 50,
    threshold: float = 0.1,
    variance_power: float = 1.0,
    stop: StopRule = "same_sign",
) -> Swaps:
    """Returns masks with as many kept in each row, chosen for a small expected error.

    Args:
        weight: (outputs, inputs), the pruned entries with their values from before pruning.
        sums: (inputs,), S: the sum of each input over a sequence, averaged over sequences.
        squares: (inputs,), Q: the same of its square; Wanda's norm is its root.
        variances: (inputs,), V: the mean variance within sequences.
        keep: bool (outputs, inputs), the mask to begin with, True where kept; rows may differ in
            how many they keep.
        cycles: Swaps of a row at most.
        threshold: A row whose expected error is at most this, on the scale of the sums, is done.
        variance_power: How much a varying input counts against growing; 0 not at all.
        stop: "threshold" swaps until that, past zero if need be; "same_sign" also ends a row
            before the swap that would turn the sign of its error.

    Returns:
        Masks, and for each row the expected error before and after, and the number of swaps.

    Raises:
        InvalidValue: If shapes do not fit or a setting is out of range.
        UnknownName: If `stop` is neither.
        NonFinite: If a weight or a statistic is NaN or infinite.

    Example:
        >>> weight = torch.tensor([[2.0, -1.0, 3.0, 0.5]])
        >>> ones, keep = torch.ones(4), torch.tensor([[False, True, True, False]])
        >>> found = dsnot_rows(weight, ones, ones, ones, keep, stop="threshold", cycles=1)
        >>> found.keep.int().tolist(), found.before.item(), found.after.item()
        ([[1, 0, 1, 0]], 2.5, -0.5)

    Reference:
        Zhang et al., 2023, arXiv 2310.08915, section 3, eq. 4 to 7.
    """
    check_settings(cycles, threshold, variance_power, stop)
    _check(weight, keep, sums=sums, squares=squares, variances=variances)
    norms = squares.double().sqrt().float()
    limits = Stop(cycles=cycles, threshold=threshold, same_sign=stop == "same_sign")
    return swap_in_rows(
        weight.float(), sums.float(), _spreads(variances, variance_power), norms, keep, limits
    )


def dsnot_groups(
    weight: Tensor,
    sums: Tensor,
    variances: Tensor,
    keep: Tensor,
    scores: Tensor,
    of: int,
    *,
    cycles: int = 50,
    threshold: float = 0.1,
    variance_power: float = 1.0,
) -> Swaps:
    """Returns N:M masks of small expected error: what is grown takes the place of one in its group.

    The one that goes is of lowest initial score, and a row always ends before its error would turn
    its sign. A group of which nothing may go any more costs the cycle.

    Args:
        weight: (outputs, inputs), the pruned entries with their values from before pruning.
        sums: (inputs,), S, as in `dsnot_rows`.
        variances: (inputs,), V.
        keep: bool (outputs, inputs), with equally many in all groups.
        scores: (outputs, inputs), by which the first mask was chosen.
        of: Length of a group, M.
        cycles: Cycles at most.
        threshold: Of the expected error.
        variance_power: How much a varying input counts against growing.

    Raises:
        InvalidValue: If shapes do not fit, a setting is out of range, or the mask is not N:M.
        NonFinite: If a weight or a statistic is NaN or infinite.

    Reference:
        Zhang et al., 2023, arXiv 2310.08915, section 3; the N:M form of its code.
    """
    check_settings(cycles, threshold, variance_power, "same_sign")
    _check(weight, keep, sums=sums, variances=variances)
    _check_groups(keep, of)
    check_finite(scores, "scores")
    return swap_in_groups(
        weight.float(),
        sums.float(),
        _spreads(variances, variance_power),
        scores.float(),
        keep,
        of,
        Stop(cycles=cycles, threshold=threshold, same_sign=True),
    )


def _spreads(variances: Tensor, power: float) -> Tensor:
    """Returns V^power as float32 above zero; V_j = 0 stands for the smallest that is not."""
    varying = variances > 0
    smallest = variances[varying].min() if bool(varying.any()) else variances.new_tensor(1.0)
    filled = torch.where(varying, variances, smallest)
    return filled.double().pow(power).clamp(_FLOAT.tiny, _FLOAT.max).float()


def check_settings(cycles: int, threshold: float, power: float, stop: str) -> None:
    """Raises InvalidValue or UnknownName if a setting of the swaps is out of range."""
    if cycles < 0:
        raise InvalidValue(f"cycles={cycles} is not allowed: give 0 or more, for example 50")
    if not threshold >= 0:
        raise InvalidValue(f"threshold={threshold} is not allowed: give 0 or more, such as 0.1")
    if not 0 <= power < torch.inf:
        raise InvalidValue(f"variance_power={power} is not allowed: give 0 or more, such as 1")
    if stop not in STOPS:
        raise UnknownName("stop", stop, STOPS)


def _check(weight: Tensor, keep: Tensor, **statistics: Tensor) -> None:
    if weight.dim() != 2 or keep.shape != weight.shape or keep.dtype != torch.bool:
        raise InvalidValue(
            f"a weight of shape {tuple(weight.shape)} and a mask of {keep.dtype} and shape "
            f"{tuple(keep.shape)} do not fit: give a matrix (outputs, inputs), and a torch.bool "
            "mask of the same shape"
        )
    check_finite(weight, "weight")
    for name, each in statistics.items():
        if each.shape != weight.shape[1:]:
            raise InvalidValue(
                f"{name} has shape {tuple(each.shape)}, but the weight has {weight.shape[1]} "
                f"inputs: give one number for each, shape ({weight.shape[1]},)"
            )
        check_finite(each, name)
        if name != "sums" and bool((each < 0).any()):
            raise InvalidValue(f"{name} has negative entries; squares and variances have none")


def _check_groups(keep: Tensor, of: int) -> None:
    if of < 1 or keep.shape[1] % of:
        raise InvalidValue(
            f"{keep.shape[1]} inputs do not divide into groups of {of}: choose an N:M whose M "
            "divides them"
        )
    kept = keep.view(keep.shape[0], -1, of).sum(-1)
    if kept.numel() and bool((kept != kept[0, 0]).any()):
        row, group = (kept != kept[0, 0]).nonzero()[0].tolist()
        raise InvalidValue(
            f"the mask to begin with is not N:{of}: group 0 of row 0 keeps {int(kept[0, 0])}, "
            f"group {group} of row {row} keeps {int(kept[row, group])}"
        )
