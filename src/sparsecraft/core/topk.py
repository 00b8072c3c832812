"""How many entries of an activation each token keeps, where the k largest are kept."""

from __future__ import annotations

import operator

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.mask import count


def check_topk(k: int | None, fraction: float | None) -> None:
    """Raises InvalidValue unless `k` is a whole number of at least 1, or `fraction` in (0, 1].

    Only one of them may be given.
    """
    if k is not None and fraction is not None:
        raise InvalidValue(f"both k={k} and fraction={fraction:g} were given: give one of them")
    if k is None and fraction is None:
        raise InvalidValue(
            "neither k nor fraction was given: give k, the entries of an activation that each "
            "token keeps, or fraction, their share"
        )
    if fraction is not None and not 0 < fraction <= 1:
        raise InvalidValue(
            f"fraction={fraction!r} is not allowed: it is the share of entries kept, in (0, 1]"
        )
    if k is None:
        return
    try:
        whole = operator.index(k)
    except TypeError:
        whole = 0
    if isinstance(k, bool) or whole < 1:
        raise InvalidValue(
            f"k={k!r} is not allowed: it is a number of entries, a whole number of at least 1"
        )


def kept_of(features: int, k: int | None, fraction: float | None, where: str = "") -> int:
    """Returns how many of `features` entries a token keeps; of a fraction at least one.

    Args:
        features: Entries of an activation.
        k: How many are kept, or None.
        fraction: Their share, or None.
        where: Whose activation it is, for the message.

    Raises:
        InvalidValue: If `k` exceeds the number of entries, or see `check_topk`.

    Example:
        >>> kept_of(64, 8, None), kept_of(64, None, 1 / 16), kept_of(4, None, 0.01)
        (8, 4, 1)
    """
    check_topk(k, fraction)
    if fraction is not None:
        return max(1, count(features, fraction))
    if k is None or k > features:
        raise InvalidValue(
            f"k={k} exceeds the {features} entries of the activation{where and f' of {where}'}: "
            f"give at most {features}, or a fraction"
        )
    return k
