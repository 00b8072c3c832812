"""Which code runs a kernel: compiled loops (numba) where they apply, plain PyTorch elsewhere.

Both back ends give the same answer bit for bit. A choice made by hand is obeyed or refused with
an error; it is never replaced in silence.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

BACKENDS = ("numba", "torch")
VARIABLE = "SPARSECRAFT_BACKEND"
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_forced: ContextVar[str | None] = ContextVar("sparsecraft_backend", default=None)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Forces a back end inside a `with` block; stronger than the environment variable.

    Args:
        name: "numba" or "torch".

    Raises:
        ValueError: If the name is unknown, or numba is asked for and cannot be imported.

    Example:
        >>> with use_backend("torch"):
        ...     describe()["backend"]
        'torch'
    """
    token = _forced.set(_checked(name, "use_backend"))
    try:
        yield
    finally:
        _forced.reset(token)


def choose(tensors: Iterable[Tensor]) -> str:
    """Returns the back end for one kernel call on these tensors: "numba" or "torch".

    Raises:
        ValueError: If numba is forced, and a tensor is not a floating-point tensor on the CPU.
    """
    unfit = [tensor for tensor in tensors if not _compiled_applies(tensor)]
    name = forced()
    if name == "numba" and unfit:
        raise ValueError(
            f"the numba back end is forced, but it cannot take a {unfit[0].dtype} tensor on "
            f"{unfit[0].device}: it needs {_listed(FLOATS)} on cpu. Use the torch back end."
        )
    if name is not None:
        return name
    return "torch" if unfit or numba_version() is None else "numba"


def forced() -> str | None:
    """Returns the back end that the user asked for, or None.

    Raises:
        ValueError: If the environment variable names no back end.
    """
    name = _forced.get()
    if name is not None:
        return name
    name = os.environ.get(VARIABLE)
    return _checked(name, VARIABLE) if name else None


@functools.cache
def numba_version() -> str | None:
    """Returns the version of numba, or None where it cannot be imported."""
    try:
        import numba
    except ImportError:
        return None
    return str(numba.__version__)


def describe() -> dict[str, Any]:
    """Returns what a float tensor on the CPU runs on, and why; for reports.

    Returns:
        `backend`, `reason`, `numba` (its version, or None) and `threads`.
    """
    name = forced()
    if name is not None:
        reason = "use_backend" if _forced.get() else VARIABLE
    else:
        name = "torch" if numba_version() is None else "numba"
        reason = "numba is not installed" if name == "torch" else "fastest available"
    return {
        "backend": name,
        "reason": reason,
        "numba": numba_version(),
        "threads": torch.get_num_threads(),
    }


def _compiled_applies(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype in FLOATS


def _checked(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source}: unknown back end {name!r}; known: {', '.join(BACKENDS)}.")
    if name == "numba" and numba_version() is None:
        raise ValueError(
            f"{source} asks for the numba back end, but numba cannot be imported. "
            'Install it with: pip install "sparsecraft[fast]"'
        )
    return name


def _listed(dtypes: Iterable[torch.dtype]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
