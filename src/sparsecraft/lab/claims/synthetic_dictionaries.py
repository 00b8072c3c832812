"""Rows that are sparse sums of known directions, so that what was found can be compared with them.

A row has a random number of atoms, or exactly so many; atoms are equally frequent or follow Zipf's
law; their signs and sizes are drawn; rows may differ in how many they have on average. These are
the settings in which papers 01, 21 and 22 make their points.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.seeds import generator
from sparsecraft.core.zipf import ZipfBudget, clipped_shares


@dataclass(frozen=True)
class Mixture:
    """Rows and the codes that made them.

    Args:
        x: (rows, width).
        code: (rows, atoms), zero where an atom is not in a row.
    """

    x: Tensor
    code: Tensor

    def counts(self) -> Tensor:
        """Returns int64 (rows,): the atoms of each row."""
        return (self.code != 0).sum(1)


@dataclass(frozen=True, kw_only=True)
class SparseMixture:
    """Draws rows x = sum_j c_j a_j + noise from random unit atoms.

    Args:
        atoms: How many directions.
        width: Of a row.
        active: Atoms of a row, on average.
        exact: Whether every row has exactly that many, with equal chances for all atoms.
        exponent: Of Zipf's law by which atoms differ in frequency; 0: all alike.
        offset: Of that law.
        spread: Each row's chances are multiplied with a number from [1 - spread, 1 + spread].
        magnitudes: Sizes are uniform between these.
        signed: Whether signs are random; otherwise all are positive.
        noise: Standard deviation of Gaussian noise on each entry.

    Example:
        >>> mixture = SparseMixture(atoms=6, width=4, active=2, exact=True)
        >>> mixture.draw(5, seed=0).counts().tolist()
        [2, 2, 2, 2, 2]
    """

    atoms: int
    width: int
    active: float
    exact: bool = False
    exponent: float = 0.0
    offset: float = 0.0
    spread: float = 0.0
    magnitudes: tuple[float, float] = (0.5, 1.5)
    signed: bool = False
    noise: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.active <= self.atoms:
            raise InvalidValue(
                f"active={self.active:g} is not allowed: give above 0 and up to {self.atoms}, "
                "the atoms"
            )
        if not 0 <= self.spread <= 1:
            raise InvalidValue(f"spread={self.spread!r} is not allowed: give a number in [0, 1]")
        if self.exact and (self.spread or self.exponent or self.active % 1):
            raise InvalidValue(
                "exactly so many atoms in every row leave no room for spread, exponent or a "
                "fraction: set them to 0, or exact=False"
            )

    def directions(self, seed: int) -> Tensor:
        """Returns the atoms (atoms, width), of norm one."""
        rows = torch.randn(self.atoms, self.width, generator=generator(seed, "atoms"))
        return rows / rows.norm(dim=1, keepdim=True)

    def frequencies(self) -> Tensor:
        """Returns float64 (atoms,), the share of rows in which each atom is, most frequent first.

        With a spread, chances that would exceed one are cut off, so that a row has a little fewer.
        """
        law = ZipfBudget(exponent=self.exponent, offset=self.offset)
        return clipped_shares(law.weights(self.atoms), self.active, lowest=0.0, highest=1.0)

    def draw(self, rows: int, seed: int, part: str = "training") -> Mixture:
        """Returns rows of a part; parts of one seed share the atoms and nothing else.

        Args:
            rows: How many.
            seed: Of the atoms and the rows.
            part: Names the stream, such as "training" or "test".
        """
        stream = generator(seed, "mixture", part)
        chosen = self._chosen(rows, stream)
        low, high = self.magnitudes
        sizes = low + (high - low) * torch.rand(rows, self.atoms, generator=stream)
        signs = torch.ones(rows, self.atoms)
        if self.signed:
            signs = torch.randint(0, 2, (rows, self.atoms), generator=stream) * 2.0 - 1
        code = (sizes * signs).where(chosen, 0.0)
        x = code @ self.directions(seed)
        if self.noise:
            x = x + self.noise * torch.randn(x.shape, generator=stream)
        return Mixture(x, code)

    def _chosen(self, rows: int, stream: torch.Generator) -> Tensor:
        """Returns bool (rows, atoms), which atoms are in which row."""
        drawn = torch.rand(rows, self.atoms, generator=stream)
        if self.exact:
            found = drawn.topk(int(self.active), dim=1).indices
            return torch.zeros(rows, self.atoms, dtype=torch.bool).scatter(1, found, True)
        rates = 1 + self.spread * (2 * torch.rand(rows, 1, generator=stream) - 1)
        return drawn < rates * self.frequencies().float()
