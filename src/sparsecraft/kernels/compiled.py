"""How the loops are compiled with numba, and the key of a float inside them.

Imported only by the numba back ends, which are imported only when they run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a loop that runs without the interpreter lock, kept on disk between processes.

    Where no directory can be written, it is compiled anew in each process.
    """
    return _compiled(function)


def compiled_sums(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles like `compiled` a loop whose sums may be taken in another order.

    Sums then run in several lanes, and a product and a sum are rounded once. The order is the
    machine code's, so the same machine gives the same bits again.
    """
    return _compiled(function, fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")


def _compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    try:
        return numba.njit(nogil=True, cache=True, **options)(function)
    except RuntimeError:
        return numba.njit(nogil=True, **options)(function)


@numba.njit(nogil=True, inline="always")
def ordered(kind, raw, clear, lowest):
    """Returns the key of a float's bits; `sparsecraft.kernels.order` says what it is."""
    raw = kind(raw & clear)
    return raw if raw >= 0 else kind(lowest - raw)
