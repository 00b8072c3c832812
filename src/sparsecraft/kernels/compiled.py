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
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:
        return numba.njit(nogil=True)(function)


@numba.njit(nogil=True, inline="always")
def ordered(kind, raw, clear, lowest):
    """Returns the key of a float's bits; `sparsecraft.kernels.order` says what it is."""
    raw = kind(raw & clear)
    return raw if raw >= 0 else kind(lowest - raw)
