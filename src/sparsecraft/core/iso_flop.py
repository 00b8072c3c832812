"""The numbers of iso-FLOP transformations: how large a sparse layer of equal cost may be.

Sparse-IFT (Thangarasa et al., 2023) replaces a dense layer by a larger sparse one whose active
multiplications are those of the dense layer; one number, the sparsity, fixes the size. Here are
those sizes, the search for the sparsity at which profiled FLOPs equal a budget, and what a step
of RigL costs. For a k x k convolution `kernel` is k * k; a linear layer has 1.

Two departures. Every quotient is cleaned of its last few bits before it is rounded, so that 0.9
gives what 9/10 gives; a plain ceiling of floating-point numbers is one too high there. And a
growth that is not near a whole number stays as it is (sparsity 0.6 means 2.5 times the weights),
unless `whole_growth` asks for the official code's rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from sparsecraft.core.errors import BudgetError, InvalidValue, check_sparsity

NEARLY_WHOLE = 1e-3
"""How far 1 / (1 - sparsity) may be from the whole number that it is taken for."""


def growth(sparsity: float, *, whole_growth: bool = False) -> float:
    """Returns how many times more weights a layer of this sparsity may have, 1 / (1 - s).

    Args:
        sparsity: In [0, 1).
        whole_growth: Whether to round to a whole number whatever it is; otherwise only a value
            within 0.001 of one is rounded.

    Example:
        >>> growth(0.9), growth(0.6), growth(0.6, whole_growth=True)
        (10.0, 2.5, 2.0)
    """
    exact = 1.0 / (1.0 - check_sparsity(sparsity))
    whole = round(round(exact, 6))
    return float(whole) if whole_growth or abs(exact - whole) <= NEARLY_WHOLE else exact


def width_multiplier(sparsity: float, *, whole_growth: bool = False) -> float:
    """Returns by how much Sparse-Wide multiplies every width, k = sqrt(1 / (1 - s)).

    Reference:
        Thangarasa et al., 2023, arXiv 2303.11525, section 3.2.
    """
    return math.sqrt(growth(sparsity, whole_growth=whole_growth))


def wide_widths(
    widths: Mapping[str, int],
    sparsity: float,
    *,
    base: int | None = None,
    whole_growth: bool = False,
) -> dict[str, int]:
    """Returns the widths of Sparse-Wide: k times the old ones, rounded down.

    Args:
        widths: Group name to number of units.
        sparsity: In [0, 1).
        base: The width that is rounded; all others keep their proportion to it, as the stages of
            the official ResNets do. None rounds each width by itself.
        whole_growth: See `growth`.

    Example:
        >>> [wide_widths({"first": 64}, s)["first"] for s in (0.5, 0.75, 0.9)]
        [90, 128, 202]
        >>> wide_widths({"a": 64, "b": 128}, 0.5, base=64)
        {'a': 90, 'b': 180}
    """
    multiplier = width_multiplier(sparsity, whole_growth=whole_growth)
    if base is None:
        return {name: _floor(width * multiplier) for name, width in widths.items()}
    if base < 1:
        raise InvalidValue(f"base={base} is not allowed: give a width of the model, such as 64")
    rounded = _floor(base * multiplier)
    return {name: _floor(width * rounded / base) for name, width in widths.items()}


def parallel_branches(sparsity: float) -> int:
    """Returns the number of branches of Sparse-Parallel, 1 / (1 - s).

    Raises:
        InvalidValue: If that is not within 0.001 of a whole number.

    Example:
        >>> [parallel_branches(s) for s in (0, 0.5, 0.75, 0.9)]
        [1, 2, 4, 10]
    """
    exact = 1.0 / (1.0 - check_sparsity(sparsity))
    whole = round(exact)
    if abs(exact - whole) > NEARLY_WHOLE:
        lower, higher = math.floor(exact), math.ceil(exact)
        raise InvalidValue(
            f"sparsity={sparsity!r} gives 1 / (1 - s) = {exact:.4g} parallel branches, which is "
            f"not a whole number. Give {1 - 1 / lower:.6g} for {lower} or {1 - 1 / higher:.6g} "
            f"for {higher}."
        )
    return whole


def factorized_rank(
    inputs: int, outputs: int, kernel: int, sparsity: float, *, sparse: str = "both"
) -> int:
    """Returns the inner width d of Sparse-Factorized, y = V sigma(U x), rounded up.

    U maps the inputs to d with the layer's kernel, V maps d to the outputs with a kernel of 1.

    Args:
        inputs: Input features or channels.
        outputs: Output features or channels.
        kernel: Entries of the kernel; 1 for a linear layer.
        sparsity: Of U and V, in [0, 1).
        sparse: "both", or "U" if V stays dense.

    Example:
        >>> factorized_rank(64, 64, 1, 0.75), factorized_rank(64, 64, 9, 0.9)
        (128, 576)

    Reference:
        Thangarasa et al., 2023, arXiv 2303.11525, section 3.2.
    """
    density = 1.0 - check_sparsity(sparsity)
    if sparse not in ("both", "U"):
        raise InvalidValue(f"sparse={sparse!r} is not allowed: give 'both' or 'U'")
    second = density * outputs if sparse == "both" else outputs
    return _ceil(kernel * inputs * outputs / (density * kernel * inputs + second))


def doped_rank(inputs: int, outputs: int, kernel: int, sparsity: float) -> int:
    """Returns the rank of V U in Sparse-Doped, W x + V U x, rounded down; 0 if it has no room.

    Example:
        >>> doped_rank(64, 64, 9, 0.5), doped_rank(64, 64, 1, 0)
        (28, 0)
    """
    freed = check_sparsity(sparsity) * kernel * inputs * outputs
    return _floor(freed / (kernel * inputs + outputs))


def wide_factorized_rank(
    inputs: int, outputs: int, kernel: int, wide_inputs: int, wide_outputs: int
) -> int:
    """Returns the rank at which a widened dense layer costs what the narrow one did, rounded up.

    Args:
        inputs: Of the narrow layer.
        outputs: Of the narrow layer.
        kernel: Entries of the kernel.
        wide_inputs: Of the widened layer.
        wide_outputs: Of the widened layer.
    """
    return _ceil(kernel * inputs * outputs / (kernel * wide_inputs + wide_outputs))


def matched_sparsity(
    flops: Callable[[float], float], budget: float, *, tolerance: float = 1e-3
) -> float:
    """Returns the sparsity at which the FLOPs are those of the budget, by bisection.

    Args:
        flops: Effective FLOPs at a sparsity; must not rise with it.
        budget: FLOPs wanted.
        tolerance: Largest relative difference from the budget.

    Raises:
        BudgetError: If even sparsity 0 costs less, or sparsity 1 costs more.

    Example:
        >>> round(matched_sparsity(lambda s: 10 + 400 * (1 - s), 110), 2)
        0.75
    """
    low, high = 0.0, 1.0
    if flops(low) <= budget * (1 + tolerance):
        if flops(low) >= budget * (1 - tolerance):
            return low
        raise BudgetError(
            f"dense, the transformed model costs {flops(low) / budget:.3f} of the budget: nothing "
            "has to be sparse. Ask for a higher sparsity, so that it grows more."
        )
    if flops(high) >= budget * (1 - tolerance):
        raise BudgetError(
            f"the layers that stay dense alone cost {flops(high) / budget:.3f} of the budget. "
            "Let the stem or the head be sparse too (skip=...), or ask for a lower sparsity."
        )
    while True:
        middle = (low + high) / 2
        found = flops(middle)
        # A fiftieth of the tolerance: counting whole weights uses up some of it afterwards.
        if abs(found - budget) <= tolerance / 50 * budget or high - low < 1e-12:
            return middle
        low, high = (middle, high) if found > budget else (low, middle)


def rigl_step_flops(sparse: float, dense: float, every: int) -> float:
    """Returns the mean FLOPs of a training step of RigL, for one example.

    A step costs three forward passes; the one that renews the mask needs the dense gradient.

    Args:
        sparse: Forward FLOPs of the masked model.
        dense: Forward FLOPs of the same model without its mask: after a transformation, those of
            the *larger* model.
        every: Steps between two updates of the mask.

    Example:
        >>> rigl_step_flops(1.0, 1.0, 100)
        3.0

    Reference:
        Evci et al., 2020, arXiv 1911.11134, appendix H.
    """
    if every < 1:
        raise InvalidValue(f"every={every} is not allowed: give at least 1 step between updates")
    return (3 * sparse * every + 2 * sparse + dense) / (every + 1)


def _floor(value: float) -> int:
    return math.floor(round(value, 6))


def _ceil(value: float) -> int:
    return math.ceil(round(value, 6))
