"""What gates really drop: counted while a gated model runs, padding left out.

The sparsity of a place is the share of entries dropped of the tokens that are gated, which are all
in decoding; over the whole text it is less where the first tokens of a prompt are spared. The mean
over places is weighted by the weights whose products it scales. It is what a kernel that skips
could save, not what is saved: masks alone bring no speed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sparsecraft.core import catalog
from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.greedy_allocation import AllocationRow
from sparsecraft.core.kinds import Gate
from sparsecraft.model.gate_hooks import InstalledGate, installed
from sparsecraft.model.gate_places import Place

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class PlaceReport:
    """What was asked of a place and what it dropped.

    Args:
        name: Of the place.
        at: Whether the input or the output of the module is gated.
        features: Entries of a token.
        numel: Weights whose products scale with what is kept.
        asked: Sparsity asked.
        achieved: Sparsity measured of the tokens that are gated; None if none came by.
        whole_text: The same over all tokens, those spared at the beginning of a text too.
    """

    name: str
    at: str
    features: int
    numel: int
    asked: float
    achieved: float | None = None
    whole_text: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values."""
        return dict(vars(self))


@dataclass(frozen=True)
class SparsityReport:
    """What the gates of a model dropped on some data.

    Args:
        rows: One for each place.
        tokens: That came by the first place.
    """

    rows: tuple[PlaceReport, ...]
    tokens: int

    @property
    def sparsity(self) -> float | None:
        """Measured sparsity of gated tokens, places weighted by their numbers of weights."""
        return _weighted([(row.achieved, row.numel) for row in self.rows])

    @property
    def whole_text(self) -> float | None:
        """Measured sparsity over all tokens, spared ones too, weighted alike."""
        return _weighted([(row.whole_text, row.numel) for row in self.rows])

    @property
    def flops(self) -> tuple[int, int]:
        """(needed, dense) operations of the gated products of a token; a multiply-add is two."""
        dense = sum(2 * row.numel for row in self.rows)
        dropped = sum(2 * row.numel * (row.achieved or 0.0) for row in self.rows)
        return round(dense - dropped), dense

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values."""
        needed, dense = self.flops
        return {
            "sparsity": self.sparsity,
            "whole_text": self.whole_text,
            "tokens": self.tokens,
            "flops_per_token": {"needed": needed, "dense": dense},
            "places": [row.to_json() for row in self.rows],
        }


@torch.no_grad()
def sparsity_report(model: nn.Module, batches: Sequence[Batch]) -> SparsityReport:
    """Returns what the gates of a model drop on these batches.

    Args:
        model: A gated model; it is run in evaluation mode and left as it was.
        batches: Keyword arguments of its forward pass; best of text that no threshold was
            chosen on.

    Raises:
        InvalidValue: If the model has no gates, or there is no batch.

    Example:
        >>> import sparsecraft
        >>> layer = nn.Sequential(nn.Linear(8, 4))
        >>> gated = sparsecraft.gate(layer, "teal", rule="topk", sparsity=0.75)
        >>> sparsity_report(layer, [{"input": torch.randn(3, 8)}]).sparsity
        0.75
    """
    gates = installed(model)
    if not gates:
        raise InvalidValue("the model has no gates: gate it first, sparsecraft.gate(model, ...)")
    if not batches:
        raise InvalidValue("no batch was given, so nothing can be measured")
    counts = _Counts()
    with _metered(model, gates, counts):
        for batch in batches:
            counts.start(batch)
            model(**{key: value for key, value in batch.items() if key != "labels"})
    rows = tuple(_row(hook, counts) for hook in gates.values())
    tokens = max((each["tokens"] for each in counts.every.values()), default=0)
    return SparsityReport(rows, tokens)


class _Counts:
    """Kept and seen entries of each place, of gated tokens and of all; padding is left out."""

    def __init__(self) -> None:
        self.gated: dict[str, Counter[str]] = defaultdict(Counter)
        self.every: dict[str, Counter[str]] = defaultdict(Counter)
        self.valid: Tensor | None = None

    def start(self, batch: Batch) -> None:
        mask = batch.get("attention_mask")
        self.valid = mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None

    def __call__(self, place: Place, mask: Tensor, spared: int) -> None:
        tokens = torch.ones(mask.shape[:-1], dtype=torch.bool, device=mask.device)
        if self.valid is not None and tokens.shape == self.valid.shape:
            tokens &= self.valid.to(tokens.device)
        _add(self.every[place.name], mask[tokens])
        if spared:
            tokens[..., :spared] = False
        _add(self.gated[place.name], mask[tokens])


def _add(counts: Counter[str], rows: Tensor) -> None:
    counts.update(kept=int(rows.sum()), seen=rows.numel(), tokens=rows.shape[0])


def _sparsity(counts: Counter[str]) -> float | None:
    return 1 - counts["kept"] / counts["seen"] if counts["seen"] else None


def _weighted(shares: Sequence[tuple[float | None, int]]) -> float | None:
    known = [(share, weight) for share, weight in shares if share is not None]
    total = sum(weight for _, weight in known)
    return sum(share * weight for share, weight in known) / total if total else None


@contextmanager
def _metered(
    model: nn.Module, gates: Mapping[str, InstalledGate], counts: _Counts
) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    for hook in gates.values():
        hook.meter = counts
    try:
        yield
    finally:
        for hook in gates.values():
            hook.meter = None
        for module, mode in modes.items():
            module.training = mode


def _row(hook: InstalledGate, counts: _Counts) -> PlaceReport:
    place = hook.place
    return PlaceReport(
        name=place.name,
        at=place.at,
        features=place.features,
        numel=place.numel,
        asked=hook.asked,
        achieved=_sparsity(counts.gated[place.name]),
        whole_text=_sparsity(counts.every[place.name]),
    )


@dataclass(frozen=True)
class GateReport:
    """The outcome of a gating.

    Args:
        method: The method as it was used.
        rows: One for each place, with asked and achieved sparsity.
        skipped: Name and reason of what was not gated.
        seconds: Wall time.
        seed: The run's seed.
        calibration_tokens: Number of calibration tokens; what was achieved is measured on them.
        searches: Block name to the rows of its greedy search.
        notes: Everything that is not as asked or must be known, in plain words.
    """

    method: Gate
    rows: tuple[PlaceReport, ...]
    skipped: tuple[tuple[str, str], ...]
    seconds: float
    seed: int
    calibration_tokens: int = 0
    searches: Mapping[str, Sequence[AllocationRow]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def asked(self) -> float:
        """Sparsity asked, the places weighted by their numbers of weights."""
        return sum(row.asked * row.numel for row in self.rows) / sum(r.numel for r in self.rows)

    @property
    def sparsity(self) -> float | None:
        """Sparsity measured on gated calibration tokens, weighted alike; None without data."""
        return SparsityReport(self.rows, self.calibration_tokens).sparsity

    @property
    def whole_text(self) -> float | None:
        """The same over all calibration tokens, those spared at the beginning of a text too."""
        return SparsityReport(self.rows, self.calibration_tokens).whole_text

    @property
    def flops(self) -> tuple[int, int]:
        """(needed, dense) operations of the gated products of a token; a multiply-add is two."""
        return SparsityReport(self.rows, self.calibration_tokens).flops

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values."""
        return {
            "method": catalog.describe(self.method),
            "seed": self.seed,
            "asked": self.asked,
            "sparsity": self.sparsity,
            "whole_text": self.whole_text,
            "places": [row.to_json() for row in self.rows],
            "skipped": [{"name": name, "reason": reason} for name, reason in self.skipped],
            "searches": {
                name: [row.to_json() for row in rows] for name, rows in self.searches.items()
            },
            "calibration_tokens": self.calibration_tokens,
            "seconds": self.seconds,
            "notes": list(self.notes),
        }
