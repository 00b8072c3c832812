"""The ways to compute a linear layer that the runtime chooses from, and which of them apply."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.kernels.linear import Bitmask, ByInput, Csr, Dense, SemiStructured, WeightFormat
from sparsecraft.model.runtime.torch_formats import TORCH_FORMATS

BITS = {"float32": 32, "bfloat16": 16, "int8": 8, "int4": 4}
"""Types that weights may be stored in, and the bits of a number."""

FORMATS = ("torch", "dense", "gated", "by_input", "bitmask", "csr", "semi_structured")
"""PyTorch's own products; ours of whole weights, row by row; of the inputs that a gate keeps; of
whole weights, input by input; of bits and values; of values and columns; PyTorch's 2:4 on a GPU."""

_KINDS: dict[str, type[WeightFormat]] = {
    "dense": Dense,
    "by_input": ByInput,
    "bitmask": Bitmask,
    "csr": Csr,
    "semi_structured": SemiStructured,
}
_SPARSE = ("bitmask", "csr", "semi_structured")


@dataclass(frozen=True)
class Candidate:
    """One way to compute a layer.

    Args:
        format: One of `FORMATS`.
        dtype: What the weight is stored in.
    """

    format: str
    dtype: str

    @property
    def name(self) -> str:
        """For example "bitmask bfloat16"."""
        return f"{self.format} {self.dtype}"

    @property
    def store(self) -> str:
        """Name of what it keeps in memory; a gated product reads a weight stored by input."""
        return f"{'by_input' if self.format == 'gated' else self.format} {self.dtype}"

    @property
    def kind(self) -> type[WeightFormat]:
        """The class of its store."""
        if self.format == "torch":
            return TORCH_FORMATS[self.dtype]
        return _KINDS[self.store.partition(" ")[0]]

    def pack(self, weight: Tensor) -> WeightFormat:
        """Returns the weight (outputs, inputs) in its store.

        Raises:
            ValueError: If the format cannot hold it.
        """
        return self.kind.pack(weight, self.dtype)

    @classmethod
    def parse(cls, name: str) -> Candidate:
        """Returns the candidate of this name."""
        return cls(*name.split(" "))


def checked_choices(
    formats: Iterable[str] | None, dtypes: Iterable[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns formats and types as they were asked for.

    Raises:
        UnknownName: For one that does not exist.
        InvalidValue: If there is none, or a text stands where several are meant.
    """
    chosen = FORMATS if formats is None else _listed("formats", formats)
    types = _listed("dtypes", dtypes)
    for name in chosen:
        if name not in FORMATS:
            raise UnknownName("format", name, FORMATS)
    for name in types:
        if name not in BITS:
            raise UnknownName("dtype", name, BITS)
    return chosen, types


def applicable(
    formats: Sequence[str],
    dtypes: Collection[str],
    *,
    own: str,
    density: float,
    gated: bool,
    rows: int,
    cuda: bool = False,
) -> tuple[list[Candidate], dict[str, str]]:
    """Returns the candidates for a layer, its own form first, and why the others are out.

    Args:
        formats: What may be used.
        dtypes: What may be stored; the layer's own type always may, as it is.
        own: The type of the layer's weight.
        density: Share of its weights that are not zero.
        gated: Whether its input has a gate, or zeros of its own.
        rows: Rows of its input.
        cuda: Whether it is on a GPU.
    """
    found = [Candidate("torch", own)]
    out: dict[str, str] = {}
    for format in formats:
        for dtype in sorted(dtypes, key=BITS.__getitem__, reverse=True):
            candidate = Candidate(format, dtype)
            if candidate in found or not _exists(candidate):
                continue
            reason = _out(candidate, own, density, gated, rows, cuda)
            if reason:
                out[candidate.name] = reason
            else:
                found.append(candidate)
    return found, out


def _exists(candidate: Candidate) -> bool:
    if candidate.format == "torch":
        return candidate.dtype in TORCH_FORMATS
    return candidate.dtype in candidate.kind.dtypes


def _out(candidate: Candidate, own: str, density: float, gated: bool, rows: int, cuda: bool) -> str:
    """Returns why a candidate is not worth a measurement, or nothing."""
    format, bits = candidate.format, BITS[candidate.dtype]
    if bits > BITS[own]:
        return f"wider than the layer's {own}"
    if format in ("gated", "by_input") and not gated:
        return "no gate, and no zeros in its input"
    if format == "gated" and rows > 1:
        return f"a gate serves one token; {rows} rows are computed whole"
    if format == "semi_structured" and not cuda:
        return "not measured: no GPU"
    if format in ("dense", "bitmask", "csr") and cuda:
        return "its kernel is for the CPU"
    if format in _SPARSE and density > 0.9:
        return f"{1 - density:.0%} zeros are too few"
    if format == "csr" and density * (bits + 16) >= bits:
        return f"at {1 - density:.0%} zeros its columns take more than it saves"
    return ""


def _listed(what: str, values: Iterable[str]) -> tuple[str, ...]:
    if isinstance(values, str):
        raise InvalidValue(f"{what}={values!r} is a text; give a list, such as [{values!r}]")
    found = tuple(dict.fromkeys(values))
    if not found:
        raise InvalidValue(f"{what} is empty; leave it out for all")
    return found
