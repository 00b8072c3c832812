"""Which code multiplies by a format: native, numba, or plain PyTorch."""

from __future__ import annotations

from torch import Tensor

from sparsecraft.kernels import backends
from sparsecraft.kernels.linear import library

NUMBA_KERNELS = {("by_input", "float32"), ("by_input", "bfloat16"), ("csr", "float32")}


def choose(x: Tensor, kernel: str, dtype: str) -> str:
    """Returns "native", "numba" or "torch" for one product.

    Native code and numba take tensors on the CPU. `use_backend` and its environment variable are
    obeyed; so is `SPARSECRAFT_ISA`.

    Args:
        x: The input.
        kernel: The format's name.
        dtype: The type of the stored numbers.

    Raises:
        ValueError: If numba is forced, and it has no kernel for this product.
    """
    forced = backends.forced()
    compiled = (kernel, dtype) in NUMBA_KERNELS
    if forced == "numba" and not (compiled and x.device.type == "cpu"):
        raise ValueError(
            f"the numba back end is forced, but it has no product for the format {kernel} in "
            f"{dtype} on {x.device}. Use the torch back end, or force none."
        )
    if forced is not None or x.device.type != "cpu":
        return forced or "torch"
    if library.load() is not None:
        return "native"
    return "numba" if compiled and backends.numba_version() is not None else "torch"
