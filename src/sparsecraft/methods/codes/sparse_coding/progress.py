"""What dictionary learning remembers of its batches, and reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparsecraft.core.errors import ConvergenceWarning, warn_caller
from sparsecraft.core.solvers.steps import Step
from sparsecraft.methods.codes.sparse_coding.batches import BatchResult

RECENT = 20
"""Batches without activity after which an atom counts as dead."""


@dataclass(frozen=True)
class LearningReport:
    """How the learning went.

    Args:
        batches: Batches seen.
        rows: Rows seen.
        discarded: Rows that did not settle and so did not move the dictionary.
        idle_batches: Batches of which no row settled.
        shortened: Steps of the dictionary that would have overshot.
        coding_shortened: Batches for whose dictionary the codes' step was too long.
        dead: Atoms without activity in the last 20 batches.
        atoms: Of the dictionary.
        active: Entries of a code other than zero, on average over all that settled.
        error: Mean squared residual of the last batch that moved the dictionary.
    """

    batches: int
    rows: int
    discarded: int
    idle_batches: int
    shortened: int
    dead: int
    atoms: int
    active: float
    error: float
    coding_shortened: int = 0

    def __str__(self) -> str:
        told = [
            f"{self.batches} batches, {self.active:.1f} entries a row, mean squared residual "
            f"{self.error:.4g}"
        ]
        if self.discarded:
            told.append(
                f"{self.discarded} of {self.rows} rows did not settle and were left out "
                f"({self.idle_batches} whole batches): raise max_steps or tolerance"
            )
        if self.dead:
            told.append(f"{self.dead} of {self.atoms} atoms are dead")
        if self.shortened:
            told.append(f"{self.shortened} steps were shortened: lower learning_rate")
        if self.coding_shortened:
            told.append(
                f"in {self.coding_shortened} batches the codes' step was too long and shortened: "
                "lower step"
            )
        return "; ".join(told)

    def warn_since(self, before: LearningReport, step: Step) -> None:
        """Warns of what went otherwise than asked since an earlier report.

        Args:
            before: That report.
            step: Of the codes, as it was asked.
        """
        rows, discarded = self.rows - before.rows, self.discarded - before.discarded
        if discarded:
            warn_caller(
                f"{discarded} of {rows} rows did not settle and did not move the dictionary: raise "
                "max_steps or tolerance",
                ConvergenceWarning,
            )
        shortened = self.coding_shortened - before.coding_shortened
        if shortened:
            warn_caller(
                f"in {shortened} of {self.batches - before.batches} batches step={step!r} was too "
                'long for the dictionary, and "auto" took its place: lower it',
                ConvergenceWarning,
            )


@dataclass
class Progress:
    """Counts that run over batches; `tensors` and `numbers` hold all of it."""

    active: Tensor
    quiet: Tensor
    batches: int = 0
    updates: int = 0
    rows: int = 0
    discarded: int = 0
    idle_batches: int = 0
    shortened: int = 0
    coding_shortened: int = 0
    errors: list[float] = field(default_factory=list)

    @classmethod
    def start(cls, atoms: int) -> Progress:
        """Returns the counts before the first batch."""
        return cls(torch.zeros(atoms, dtype=torch.int64), torch.zeros(atoms, dtype=torch.int64))

    def add(self, found: BatchResult, *, coding_shortened: bool = False) -> None:
        """Takes one batch into account.

        Args:
            found: What it did.
            coding_shortened: Whether the codes' step was too long for its dictionary.
        """
        self.coding_shortened += coding_shortened
        settled = int(found.settled.sum())
        self.batches += 1
        self.rows += len(found.settled)
        self.discarded += len(found.settled) - settled
        if not settled:
            self.idle_batches += 1
            return
        counts = (found.codes != 0).sum(0).cpu()
        self.active += counts
        self.quiet = torch.where(counts > 0, 0, self.quiet + 1)
        self.updates += 1
        self.shortened += found.shortened
        self.errors.append(found.error)

    def activity(self) -> Tensor:
        """Returns (atoms,): the share of settled rows in which each was active."""
        return self.active.double() / max(self.rows - self.discarded, 1)

    def report(self) -> LearningReport:
        """Returns what is told to the user."""
        return LearningReport(
            batches=self.batches,
            rows=self.rows,
            discarded=self.discarded,
            idle_batches=self.idle_batches,
            shortened=self.shortened,
            dead=int((self.quiet >= min(RECENT, max(self.updates, 1))).sum()),
            atoms=len(self.quiet),
            active=float(self.activity().sum()),
            error=self.errors[-1] if self.errors else float("nan"),
            coding_shortened=self.coding_shortened,
        )

    def numbers(self) -> dict[str, Any]:
        """Returns what is not a tensor, as plain values."""
        counts = ("batches", "updates", "rows", "discarded", "idle_batches", "shortened")
        return {name: getattr(self, name) for name in (*counts, "coding_shortened", "errors")}

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> Progress:
        """Returns the counts that were saved."""
        return cls(tensors["active"], tensors["quiet"], **numbers)
