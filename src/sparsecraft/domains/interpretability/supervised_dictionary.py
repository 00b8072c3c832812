"""Dictionaries of known attributes, fitted by averaging: the ceiling for those found blindly.

Where the attributes of every prompt are known, an activation is modelled as the mean plus one
vector for the value of each attribute (Makelov et al., 2024). Two departures from the authors'
code: "mse" codes come from a float64 least-squares solve that finds the rank (the design is rank
deficient by construction, and their float32 solve gave other answers from run to run), and their
free choice of origin is fixed so that the bias is the mean, as for "mean" codes. Values that were
not seen are refused; the authors' code gives them zeros.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from sparsecraft.core.errors import CheckpointError, InvalidValue, NonFinite, UnknownName
from sparsecraft.model.files import atomic_directory, write_atomic

Attributes = Mapping[str, Sequence[Hashable] | Tensor]
"""Attribute name to the value of every row."""

Codes = Literal["mean", "mse"]
EditMethod = Literal["arithmetic", "zero_subspace", "mean_subspace"]
CODES: tuple[Codes, ...] = get_args(Codes)
EDIT_METHODS: tuple[EditMethod, ...] = get_args(EditMethod)
TENSORS, SETTINGS = "codes.safetensors", "supervised_dictionary.json"


class SupervisedDictionary:
    """One vector for every value of every attribute, and a bias.

    Args:
        method: "mean": each code is the mean of the rows with that value, less the mean of all;
            "mse": the codes whose sum reconstructs best. The two agree where every combination of
            values is equally frequent.

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [0.0, 2.0], [4.0, 0.0], [4.0, 2.0]])
        >>> side = {"side": ["left", "left", "right", "right"]}
        >>> known = SupervisedDictionary().fit(x, side)
        >>> known.codes["side"].tolist()
        [[-2.0, 0.0], [2.0, 0.0]]
        >>> known.edit(x[:1], {"side": ["left"]}, {"side": ["right"]}).tolist()
        [[4.0, 0.0]]

    Reference:
        Makelov, Lange, Nanda, 2024, arXiv 2405.08366, section 3.
    """

    def __init__(self, method: Codes = "mean") -> None:
        if method not in CODES:
            raise UnknownName("kind of codes", str(method), CODES)
        self.method = method
        self.values: dict[str, list[Hashable]] = {}
        """Attribute to its values, in the order of the codes' rows."""
        self.codes: dict[str, Tensor] = {}
        """Attribute to (values, d) vectors."""
        self.bias: Tensor = torch.zeros(0)
        self.info: dict[str, Any] = {}
        """Where the rows came from: prompts, split, seed; kept in the file."""

    def fit(self, x: Tensor, attributes: Attributes) -> SupervisedDictionary:
        """Finds the codes of all values, and returns self.

        Args:
            x: (rows, d) activations, not scaled.
            attributes: The values of every row.

        Raises:
            InvalidValue: If lengths differ, or an attribute has the same value everywhere.
            NonFinite: If an activation is NaN or infinite.
        """
        rows = _check_rows(x).double()
        self.values = {name: _vocabulary(name, each) for name, each in attributes.items()}
        if not self.values:
            raise InvalidValue("no attribute was given: name at least one, with a value for a row")
        index = self.indices(attributes, len(rows))
        mean = rows.mean(0)
        find = _mean_codes if self.method == "mean" else _least_squares_codes
        sizes = {name: len(values) for name, values in self.values.items()}
        found = find(rows - mean, index, sizes)
        self.bias = mean.to(x.dtype)
        self.codes = {name: codes.to(x) for name, codes in found.items()}
        return self

    def indices(self, attributes: Attributes, rows: int | None = None) -> dict[str, Tensor]:
        """Returns attribute to int64 (rows,), the place of each row's value in `values`.

        Raises:
            UnknownName: For an attribute or a value that `fit` has not seen.
            InvalidValue: If the attributes differ in length.
        """
        for name in self.values:
            if name not in attributes:
                raise UnknownName("attribute (it was fitted and is not given)", name, attributes)
        return {name: self._index(name, each, rows) for name, each in attributes.items()}

    def code_of(self, name: str, values: Sequence[Hashable] | Tensor) -> Tensor:
        """Returns (rows, d), the code of each row's value of one attribute."""
        self._check_fitted()
        return self.codes[name][self._index(name, values, None)]

    def reconstruct(self, attributes: Attributes) -> Tensor:
        """Returns (rows, d): the bias plus the codes of each row's values."""
        self._check_fitted()
        found = self.indices(attributes)
        total = self.bias.expand(len(next(iter(found.values()))), -1)
        for name, index in found.items():
            total = total + self.codes[name][index]
        return total

    def edit(
        self, x: Tensor, old: Attributes, new: Attributes, method: EditMethod = "arithmetic"
    ) -> Tensor:
        """Returns activations (rows, d) in which attributes have other values.

        Args:
            x: (rows, d).
            old: Of the attributes to change, the values of the rows; others are ignored.
            new: Their new values; only the attributes named here change, in this order.
            method: "arithmetic" subtracts the old code and adds the new; "zero_subspace" removes
                what lies along the old code instead, "mean_subspace" sets it to what the mean of
                all rows has there.

        Raises:
            UnknownName: For an unknown attribute, value or method.
            InvalidValue: If lengths differ.
        """
        if method not in EDIT_METHODS:
            raise UnknownName("edit method", str(method), EDIT_METHODS)
        edited, added = _check_rows(x), torch.zeros_like(x)
        # All old values go before the new ones come, which the removal of a direction would touch.
        for name, values in new.items():
            if name not in old:
                raise UnknownName("attribute with an old value", name, old)
            before, after = self.code_of(name, old[name]), self.code_of(name, values)
            _check_length(name, len(before), len(x))
            _check_length(name, len(after), len(x))
            edited, added = _without(edited, before, self.bias, method), added + after
        return edited + added

    def weights(self, attributes: Attributes) -> dict[str, Tensor]:
        """Returns attribute to (rows,), the share of the reconstruction that its code makes.

        With r the reconstruction less the bias, that is <code, r> / ||r||^2; shares sum to 1, and
        are 0 where r is zero.
        """
        r = self.reconstruct(attributes) - self.bias
        square = r.square().sum(1)
        return {
            name: ((self.codes[name][index] * r).sum(1) / square).where(square > 0, 0.0)
            for name, index in self.indices(attributes).items()
        }

    def save(self, path: Path | str, *, overwrite: bool = False) -> None:
        """Writes codes, vocabularies, bias and `info` to a folder, whole or not at all.

        Raises:
            InvalidValue: If a value is neither text, a number, a truth value nor a tuple of these.
            CheckpointError: If the folder exists.
        """
        self._check_fitted()
        tensors = {"bias": self.bias, **{f"codes.{key}": each for key, each in self.codes.items()}}
        settings = {"method": self.method, "values": self.values, "info": self.info}
        try:
            text = json.dumps(settings, indent=1)
        except TypeError as error:
            raise InvalidValue(
                f"the dictionary cannot be written: {error}. Values: text, numbers or tuples"
            ) from error
        with atomic_directory(Path(path), overwrite=overwrite) as folder:
            content = save_tensors({key: each.contiguous() for key, each in tensors.items()})
            write_atomic(folder / TENSORS, content)
            write_atomic(folder / SETTINGS, text + "\n")

    @classmethod
    def load(cls, path: Path | str) -> SupervisedDictionary:
        """Returns what `save` wrote.

        Raises:
            CheckpointError: If the folder does not hold such a dictionary.
        """
        folder = Path(path)
        try:
            settings = json.loads((folder / SETTINGS).read_text())
            tensors = load_tensors((folder / TENSORS).read_bytes())
            made = cls(settings["method"])
            made.info = settings["info"]
            given = settings["values"].items()
            made.values = {name: [_hashable(value) for value in values] for name, values in given}
            made.bias = tensors["bias"]
            made.codes = {name: tensors[f"codes.{name}"] for name in made.values}
        except (OSError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"{folder} holds no supervised dictionary that can be read: {error}"
            ) from error
        return made

    def _index(self, name: str, values: Sequence[Hashable] | Tensor, rows: int | None) -> Tensor:
        if name not in self.values:
            raise UnknownName("attribute", name, self.values)
        places = {value: place for place, value in enumerate(self.values[name])}
        listed = _listed(values)
        if rows is not None:
            _check_length(name, len(listed), rows)
        for value in listed:
            if value not in places:
                raise UnknownName(f"value of {name!r}", str(value), map(str, places))
        return torch.tensor([places[value] for value in listed], dtype=torch.int64)

    def _check_fitted(self) -> None:
        if not self.codes:
            raise InvalidValue("the dictionary has no codes yet: call fit(x, attributes) first")


def _mean_codes(
    centred: Tensor, index: Mapping[str, Tensor], sizes: Mapping[str, int]
) -> dict[str, Tensor]:
    """Returns attribute to the mean of the centred rows with each value."""
    found = {}
    for name, each in index.items():
        places = each.to(centred.device)
        sums = centred.new_zeros(sizes[name], centred.shape[1]).index_add_(0, places, centred)
        found[name] = sums / torch.bincount(places, minlength=sizes[name])[:, None]
    return found


def _least_squares_codes(
    centred: Tensor, index: Mapping[str, Tensor], sizes: Mapping[str, int]
) -> dict[str, Tensor]:
    """Returns the codes that minimise ||C X - A||, each attribute's of mean zero over the rows."""
    blocks = [torch.nn.functional.one_hot(index[name], sizes[name]).double() for name in index]
    design = torch.cat([torch.ones(len(centred), 1, dtype=torch.float64), *blocks], 1)
    # gelsd finds the rank: every block of the design sums to the column of ones.
    solution = torch.linalg.lstsq(design, centred.cpu(), driver="gelsd").solution
    parts = solution[1:].split([sizes[name] for name in index])
    return {
        name: codes - (block.mean(0) @ codes)
        for name, codes, block in zip(index, parts, blocks, strict=True)
    }


def _without(x: Tensor, code: Tensor, mean: Tensor, method: EditMethod) -> Tensor:
    """Returns x without the old code (rows, d), by the method."""
    if method == "arithmetic":
        return x - code
    unit = code / code.norm(dim=1, keepdim=True).clamp_min(torch.finfo(code.dtype).tiny)
    along = x if method == "zero_subspace" else x - mean
    return x - (along * unit).sum(1, keepdim=True) * unit


def _listed(values: Sequence[Hashable] | Tensor) -> list[Hashable]:
    return values.tolist() if isinstance(values, Tensor) else list(values)


def _hashable(value: Any) -> Hashable:
    """Returns a value as it was before JSON, which has lists for tuples; no value is a list."""
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _vocabulary(name: str, values: Sequence[Hashable] | Tensor) -> list[Hashable]:
    """Returns the distinct values, sorted where they can be."""
    distinct = list(dict.fromkeys(_listed(values)))
    if len(distinct) < 2:
        raise InvalidValue(
            f"attribute {name!r} has the value {distinct[0]!r} in every row, so nothing can be "
            "learned of it: leave it out, or give rows with other values"
            if distinct
            else f"attribute {name!r} has no values"
        )
    try:
        return sorted(distinct)  # type: ignore[type-var]
    except TypeError:
        return distinct


def _check_rows(x: Tensor) -> Tensor:
    if x.dim() != 2 or not x.is_floating_point():
        raise InvalidValue(
            f"activations of shape {tuple(x.shape)} and type {x.dtype} were given; (rows, d) of a "
            "floating type are needed"
        )
    if not bool(torch.isfinite(x).all()):
        raise NonFinite("activations hold NaN or infinite values: leave those rows out")
    return x


def _check_length(name: str, given: int, rows: int) -> None:
    if given != rows:
        raise InvalidValue(
            f"attribute {name!r} has {given} values for {rows} activations: give one for each row"
        )
