"""Measures like layers together and decides for each; or takes the decisions of a record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor, nn

from sparsecraft.model.runtime.candidates import Candidate, applicable
from sparsecraft.model.runtime.decision import MARGIN, Decision, decide, decide_once
from sparsecraft.model.runtime.facts import LayerFacts
from sparsecraft.model.runtime.packed_linear import PackedLinear, Plan
from sparsecraft.model.runtime.record import CandidateRecord, DecisionRecord, LayerChoice
from sparsecraft.model.runtime.stores import Stores
from sparsecraft.model.runtime.timing import Contender, Measure, Timing

Memory = Literal["fast", "small"]
_DENSITY_SLACK = 0.025
_CANNOT = (ValueError, RuntimeError, NotImplementedError)
_SLIVER = 64


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What `pack` was asked for.

    Args:
        batch_sizes: Numbers of rows to measure and choose for, rising.
        formats: Formats that may be used.
        dtypes: Types that may be stored.
        tolerance: Relative error of a layer's output that is allowed.
        memory: "fast" stores what is fastest for each number of rows, "small" one form for all.
    """

    batch_sizes: tuple[int, ...]
    formats: tuple[str, ...]
    dtypes: tuple[str, ...]
    tolerance: float
    memory: Memory

    def to_json(self) -> dict[str, Any]:
        """Returns them as plain values, with the margin that a candidate must win by."""
        return {
            "batch_sizes": list(self.batch_sizes),
            "formats": list(self.formats),
            "dtypes": list(self.dtypes),
            "tolerance": self.tolerance,
            "memory": self.memory,
            "margin": MARGIN,
        }


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """What a layer is to compute with.

    Args:
        facts: The layer.
        plans: One for each number of rows.
        choices: What the record says of them.
        unchanged: Whether the layer stays the module it is.
    """

    facts: LayerFacts
    plans: tuple[Plan, ...]
    choices: tuple[LayerChoice, ...]
    unchanged: bool


@dataclass(eq=False)
class Measured:
    """The times of one layer, for itself and those like it.

    Args:
        layer: Its name.
        timings: Rows to candidate name to timing.
        out: Rows to candidate name to why it was not timed.
        bytes: Candidate name to bytes of its store.
        errors: Candidate name to error, of this layer.
    """

    layer: str
    timings: dict[int, dict[str, Timing]] = field(default_factory=dict)
    out: dict[int, dict[str, str]] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)


def measured(
    stores: Stores, settings: Settings, measure: Measure, *, cold: bool, seconds: float
) -> Measured:
    """Returns the times of every candidate for one layer.

    Args:
        stores: Of the layer; filled with every form that is timed.
        settings: What was asked for.
        measure: How it is timed.
        cold: Whether weights come from memory.
        seconds: About how long each number of rows may take.
    """
    facts = stores.facts
    found = Measured(facts.layer.name)
    for rows in settings.batch_sizes:
        rivals, found.out[rows] = contenders(stores, settings, rows)
        found.timings[rows] = measure(
            rivals,
            _rows_of(facts.inputs, rows),
            baseline=Candidate("torch", facts.layer.dtype).name,
            cold=cold,
            seconds=seconds,
        )
        found.bytes |= {name: stores.of(Candidate.parse(name)).nbytes for name in rivals}
    found.errors |= facts.errors
    return found


def contenders(
    stores: Stores, settings: Settings, rows: int
) -> tuple[dict[str, Contender], dict[str, str]]:
    """Returns what is timed by candidate name, and why other candidates are not."""
    fit, out = candidates(stores.facts, settings, rows)
    made: dict[str, Contender] = {}
    for candidate in fit:
        try:
            made[candidate.name] = _contender(stores, candidate, rows)
        except _CANNOT as error:
            out[candidate.name] = str(error).partition("\n")[0]
    return made, out


def candidates(
    facts: LayerFacts, settings: Settings, rows: int
) -> tuple[list[Candidate], dict[str, str]]:
    """Returns what applies to a layer, its own form first, and why the rest does not."""
    return applicable(
        settings.formats,
        settings.dtypes,
        own=facts.layer.dtype,
        density=facts.density,
        gated=facts.gate is not None,
        rows=rows,
        cuda=facts.layer.weight.is_cuda,
    )


def decided(stores: Stores, times: Measured, settings: Settings) -> LayerPlan:
    """Returns what a layer computes with, by the times of this layer or of one like it."""
    facts = stores.facts
    baseline = Candidate("torch", facts.layer.dtype)

    def error(candidate: Candidate) -> float:
        try:
            return facts.error(candidate, stores.of(candidate))
        except _CANNOT:
            return math.inf

    if settings.memory == "small":
        decisions = decide_once(times.timings, baseline, error, settings.tolerance)
    else:
        decisions = {
            rows: decide(timed, baseline, error, settings.tolerance)
            for rows, timed in times.timings.items()
        }
    choices = [_choice(facts, times, rows, decision) for rows, decision in decisions.items()]
    return planned(facts, stores, choices)


def reused(facts: LayerFacts, record: DecisionRecord, settings: Settings) -> LayerPlan | None:
    """Returns what a record chose for the layer, or None where it does not speak of this layer."""
    stores = Stores(facts)
    choices: list[LayerChoice] = []
    for rows in settings.batch_sizes:
        known = [choice for choice in record.of(facts.layer.name) if choice.rows == rows]
        if not known or not _speaks_of(known[0], facts):
            return None
        candidate = Candidate.parse(known[0].chosen)
        if candidate not in candidates(facts, settings, rows)[0]:
            return None
        if candidate.name != known[0].baseline:
            try:
                error = facts.error(candidate, stores.of(candidate))
            except _CANNOT:
                return None
            if error > settings.tolerance:
                return None
        choices.append(known[0])
    return planned(facts, stores, choices)


def planned(facts: LayerFacts, stores: Stores, choices: Sequence[LayerChoice]) -> LayerPlan:
    """Returns the plans that these choices come to."""
    baseline = Candidate("torch", facts.layer.dtype)
    taken = [Candidate.parse(choice.chosen) for choice in choices]
    plans = tuple(
        stores.plan(candidate, choice.rows)
        for candidate, choice in zip(taken, choices, strict=True)
    )
    as_it_was = all(candidate == baseline for candidate in taken)
    return LayerPlan(
        facts=facts,
        plans=plans,
        choices=tuple(choices),
        unchanged=as_it_was and facts.layer.gate is None,
    )


def _choice(facts: LayerFacts, times: Measured, rows: int, decision: Decision) -> LayerChoice:
    """Returns the record's line; times are of the measured layer, errors of this one if known."""
    timed = times.timings[rows]
    found = [
        CandidateRecord(
            name=name,
            microseconds=round(1e6 * timing.median, 2),
            low=round(1e6 * timing.quartile(1), 2),
            high=round(1e6 * timing.quartile(3), 2),
            rounds=len(timing.seconds),
            bytes=times.bytes.get(name),
            error=facts.errors.get(name, times.errors.get(name)),
            note=decision.notes.get(name, ""),
        )
        for name, timing in timed.items()
    ]
    found += [CandidateRecord(name=name, note=why) for name, why in times.out[rows].items()]
    chosen = decision.chosen
    why = decision.why
    if facts.layer.gate is not None and chosen.format != "gated":
        why += "; its gate is not used" + ("" if rows == 1 else f" at {rows} rows")
    return LayerChoice(
        layer=facts.layer.name,
        rows=rows,
        shape=facts.layer.shape,
        density=facts.density,
        kept=facts.kept,
        baseline=Candidate("torch", facts.layer.dtype).name,
        chosen=chosen.name,
        why=why,
        candidates=tuple(found),
        timed_on=times.layer,
    )


def _contender(stores: Stores, candidate: Candidate, rows: int) -> Contender:
    """Returns what is timed, after its error has shown that it runs."""
    plan = stores.plan(candidate, rows)
    layer = stores.facts.layer
    bias = layer.bias if isinstance(layer.bias, nn.Parameter) else None
    sliver = replace(plan, weight=candidate.pack(layer.weight[:_SLIVER]))
    few = None if bias is None else nn.Parameter(bias.detach()[:_SLIVER], requires_grad=False)
    as_it_was = candidate == Candidate("torch", layer.dtype)
    run = layer.module.forward if as_it_was else PackedLinear([plan], bias).forward
    return Contender(run, PackedLinear([sliver], few).forward)


def _rows_of(inputs: Tensor, rows: int) -> list[Tensor]:
    """Returns inputs of so many rows: each recorded row alone, or as many as are needed."""
    if rows == 1:
        return list(inputs.split(1))
    repeats = -(-rows // inputs.shape[0])
    return [inputs.repeat(repeats, 1)[:rows].contiguous()]


def _speaks_of(choice: LayerChoice, facts: LayerFacts) -> bool:
    return (
        tuple(choice.shape) == facts.layer.shape
        and choice.baseline == Candidate("torch", facts.layer.dtype).name
        and abs(choice.density - facts.density) <= _DENSITY_SLACK
        and (choice.kept is None) == (facts.kept is None)
    )


def by_likeness(facts: Sequence[LayerFacts]) -> list[list[LayerFacts]]:
    """Returns the layers in groups that share one measurement, in model order."""
    groups: dict[tuple[object, ...], list[LayerFacts]] = {}
    for each in facts:
        groups.setdefault(each.likeness, []).append(each)
    return list(groups.values())
