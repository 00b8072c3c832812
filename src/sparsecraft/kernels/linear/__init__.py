"""Formats of a linear layer's weight, each with a product of its own: dense, gated, sparse.

Every format packs a dense matrix, multiplies by it, gives it back, and lays its tensors open for
saving. On the CPU the products of few rows run in native code that is compiled on first use
(`native_status` says which, or why not), else in numba, else in plain PyTorch.
"""

from sparsecraft.kernels.linear.bitmask import Bitmask
from sparsecraft.kernels.linear.by_input import ByInput
from sparsecraft.kernels.linear.csr import Csr
from sparsecraft.kernels.linear.dense import Dense
from sparsecraft.kernels.linear.format import WeightFormat
from sparsecraft.kernels.linear.gate import Gate
from sparsecraft.kernels.linear.library import native_status
from sparsecraft.kernels.linear.semi_structured import SemiStructured

FORMATS: dict[str, type[WeightFormat]] = {
    kind.name: kind for kind in (Dense, ByInput, Bitmask, Csr, SemiStructured)
}

__all__ = [
    "FORMATS",
    "Bitmask",
    "ByInput",
    "Csr",
    "Dense",
    "Gate",
    "SemiStructured",
    "WeightFormat",
    "native_status",
]
