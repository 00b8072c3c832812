"""Fits the gates of a model, block by block, on the calibration activations of one block at a time.

Thresholds need all values of a place, so one block's distinct inputs are the most that is held.
Where the allocation is greedy, each block is run again and again with other gates, on a few of the
sequences. Blocks see dense inputs, or what comes through the gated blocks before them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue, MissingStatistic
from sparsecraft.core.gating import ActivationGate
from sparsecraft.core.greedy_allocation import (
    AllocationRow,
    block_error,
    greedy_shares,
    nearest_row,
    relative_sizes,
)
from sparsecraft.core.kinds import Gate, GateSite
from sparsecraft.core.statistics import Statistic
from sparsecraft.model.calibration import Stage, stages
from sparsecraft.model.gate_hooks import InstalledGate, Origin, install, installed, remove
from sparsecraft.model.gate_places import Place
from sparsecraft.model.pruning import count_tokens

Batch = Mapping[str, Any]
Progress = Callable[[str, int, int], None]
SEARCH_TOKENS = 1024
"""A greedy search runs a block hundreds of times, on the first sequences with so many tokens."""


class KeptValues(Statistic):
    """Everything that a place sees, in the model's own dtype: (tokens, features)."""

    def __init__(self, features: int, device: torch.device | str = "cpu") -> None:
        super().__init__(features, device)
        self.sequences_seen: list[Tensor] = []

    def observe(self, tokens: Tensor) -> None:
        """Keeps one sequence (tokens, features) as it is."""
        self.add(tokens)

    def add(self, tokens: Tensor) -> None:
        """Keeps a copy of the sequence."""
        self.sequences_seen.append(tokens.detach().clone())

    @property
    def value(self) -> Tensor:
        """All tokens one after the other."""
        return torch.cat(self.sequences_seen)


class Reached(Statistic):
    """Only that a place was reached; nothing is kept."""

    def add(self, tokens: Tensor) -> None:
        """Takes nothing down beyond the count."""

    @property
    def value(self) -> Tensor:
        """The number of tokens."""
        return torch.tensor(self.tokens)


@dataclass
class Fitted:
    """What calibration gives.

    Args:
        gates: Place to gate.
        asked: Place name to the sparsity asked there.
        searches: Block name to the rows of its greedy search.
        notes: What did not go as asked.
    """

    gates: dict[Place, ActivationGate] = field(default_factory=dict)
    asked: dict[str, float] = field(default_factory=dict)
    searches: dict[str, list[AllocationRow]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def fit_gates(
    model: nn.Module,
    method: Gate,
    places: Sequence[Place],
    batches: Sequence[Batch],
    origin: Origin,
    progress: Progress | None = None,
) -> Fitted:
    """Fits one gate to each place; gates of blocks are installed on the way where asked for.

    Args:
        model: In its final shape, without gates.
        method: What fits the gates.
        places: Where.
        batches: Calibration batches; needed for thresholds and greedy searches.
        origin: Where the gates come from.
        progress: Called with (stage, done, total).
    """
    fitted = Fitted()
    step = method.greedy_step()
    if not method.needs_values() and step is None:
        for index, place in enumerate(places, start=1):
            _fit(fitted, method, place, method.asked(place.features), _site(model, place, origin))
            if progress is not None:
                progress(place.name, index, len(places))
        return fitted
    if not batches:
        raise MissingStatistic(
            f"{method.info.name} looks at activations here, and no calibration data was given "
            "(calibration=..., --calibration text.txt)"
        )
    _check_blocks(method, places)
    batches = list(batches) if step is None else _with_few_first(batches)
    wanted = (KeptValues,) if method.needs_values() else (Reached,)
    targets = [place.target(model) for place in places]
    by_name = {place.name: place for place in places}
    for stage in stages(model, targets, wanted, batches, progress):
        present = [by_name[t.name] for t in stage.targets if t.name not in stage.unseen]
        fitted.notes += [f"{name}: no calibration token reached it" for name in stage.unseen]
        sites = {place: _site(model, place, origin, stage) for place in present}
        shares = {place.name: method.asked(place.features) for place in present}
        if step is not None and present:
            rows = _search(model, method, sites, stage, step, origin)
            fitted.searches[stage.name] = rows
            shares = dict(nearest_row(rows, method.asked(present[0].features)).shares)
        for place, site in sites.items():
            _fit(fitted, method, place, shares[place.name], site)
        if method.on_gated_inputs():
            install(model, {p: fitted.gates[p] for p in present}, fitted.asked, origin)
    return fitted


def _fit(fitted: Fitted, method: Gate, place: Place, share: float, site: GateSite) -> None:
    fitted.asked[place.name] = share
    fitted.gates[place] = method.fit(_with_share(site, share))


def _site(model: nn.Module, place: Place, origin: Origin, stage: Stage | None = None) -> GateSite:
    """Returns what the method sees of a place, its activations included where they were kept."""
    kept = stage.values.get(place.name, {}) if stage is not None else {}
    values = kept.get(KeptValues)
    if values is not None and place.at == "output":
        values = model.get_submodule(place.module)(values)
    weight = place.weight(model)
    return GateSite(
        name=place.name,
        features=place.features if values is None else values.shape[-1],
        sparsity=0.0,
        weight=None if weight is None else weight.float(),
        orthogonal=place.orthogonal,
        values=values,
        seed=origin.seed,
    )


def _with_share(site: GateSite, share: float) -> GateSite:
    return GateSite(**{**vars(site), "sparsity": share})


def _check_blocks(method: Gate, places: Sequence[Place]) -> None:
    outside = [place.name for place in places if not place.block]
    if method.greedy_step() is not None and outside:
        raise InvalidValue(
            f"the greedy allocation works within repeated blocks, and {outside[0]} lies outside of "
            'any; take it out of the targets, or use allocation="uniform".'
        )


def _search(
    model: nn.Module,
    method: Gate,
    sites: Mapping[Place, GateSite],
    stage: Stage,
    step: float,
    origin: Origin,
) -> list[AllocationRow]:
    """Returns the rows of the greedy search within one block; the block is left without gates."""
    trial = _Trial(model, method, sites, stage, origin)
    shapes = {place.name: _shape(place) for place in sites}
    most = {place.name: site.most() for place, site in sites.items()}
    target = method.asked(next(iter(sites)).features)
    try:
        return greedy_shares(
            relative_sizes(shapes), trial.error, target=target, step=step, most=most
        )
    finally:
        trial.end()


def _shape(place: Place) -> tuple[int, int]:
    return place.numel // place.features, place.features


def _with_few_first(batches: Sequence[Batch]) -> list[Batch]:
    """Returns the batches, the first cut into the sequences of a search and the rest."""
    first = batches[0]
    rows = next(len(each) for each in first.values() if isinstance(each, Tensor))
    few = max(1, SEARCH_TOKENS * rows // max(1, count_tokens([first])))
    if few >= rows:
        return list(batches)
    cut = ({k: _rows_of(v, rows, part) for k, v in first.items()} for part in _parts(few))
    return [*cut, *batches[1:]]


def _parts(few: int) -> tuple[slice, slice]:
    return slice(0, few), slice(few, None)


def _rows_of(value: Any, rows: int, part: slice) -> Any:
    return value[part] if isinstance(value, Tensor) and len(value) == rows else value


class _Trial:
    """A block under gates that change: the error of its output for any shares.

    Only gates whose share differs are exchanged, and a gate is fitted once for each share.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Gate,
        sites: Mapping[Place, GateSite],
        stage: Stage,
        origin: Origin,
    ) -> None:
        assert stage.outputs is not None  # _check_blocks has seen to it
        self.method, self.sites, self.model = method, sites, model
        self.run = partial(stage.outputs, 1)
        self.dense = self.run()[0]
        self.fits: dict[tuple[str, float], ActivationGate] = {}
        whole = ActivationGate(threshold=0.0)
        install(model, dict.fromkeys(sites, whole), {p.name: 0.0 for p in sites}, origin)
        self.hooks: dict[str, InstalledGate] = installed(model)

    def error(self, shares: Mapping[str, float]) -> float:
        """Returns the error of the block's output on the first batch."""
        for place, site in self.sites.items():
            key = (place.name, shares[place.name])
            if key not in self.fits:
                self.fits[key] = self.method.fit(_with_share(site, shares[place.name]))
            self.hooks[place.name].gate = self.fits[key]
        return block_error(self.dense, self.run()[0])

    def end(self) -> None:
        """Takes the trial's gates away."""
        remove(self.model, list(dict.fromkeys(place.block for place in self.sites)))
