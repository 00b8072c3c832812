"""Measures like layers together and decides for each; or takes the decisions of a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor, nn

from sparsecraft.kernels.linear import WeightFormat
from sparsecraft.model.runtime.candidates import Candidate, applicable
from sparsecraft.model.runtime.decision import MARGIN, Decision, decide, decide_once
from sparsecraft.model.runtime.facts import LayerFacts
from sparsecraft.model.runtime.packed_linear import PackedLinear, Plan
from sparsecraft.model.runtime.record import CandidateRecord, DecisionRecord, LayerChoice
from sparsecraft.model.runtime.timing import Contender, Measure, Timing

Memory = Literal["fast", "small"]
_DENSITY_SLACK = 0.025
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
class Stores:
    """The stored forms of one layer's weight, each packed when first asked for."""

    facts: LayerFacts
    made: dict[str, WeightFormat] = field(default_factory=dict)

    def of(self, candidate: Candidate) -> WeightFormat:
        """Returns what the candidate keeps in memory.

        Raises:
            ValueError: If its format cannot hold the weight.
        """
        if candidate.store not in self.made:
            self.made[candidate.store] = candidate.pack(self.facts.layer.weight)
        return self.made[candidate.store]

    def plan(self, candidate: Candidate, rows: int) -> Plan:
        """Returns the plan to compute with this candidate."""
        gate = self.facts.gate if candidate.format == "gated" else None
        store = self.of(candidate)
        return Plan(rows, store, gate, self.facts.error(candidate, store))


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
    facts: LayerFacts, settings: Settings, measure: Measure, *, cold: bool, seconds: float
) -> Measured:
    """Returns the times of every candidate for one layer.

    Args:
        facts: The layer.
        settings: What was asked for.
        measure: How it is timed.
        cold: Whether weights come from memory.
        seconds: About how long each number of rows may take.
    """
    found = Measured(facts.layer.name)
    stores = Stores(facts)
    for rows in settings.batch_sizes:
        fit, out = candidates(facts, settings, rows)
        contenders: dict[str, Contender] = {}
        for candidate in fit:
            try:
                contenders[candidate.name] = _contender(facts, stores, candidate, rows, found)
            except (ValueError, RuntimeError, NotImplementedError) as error:
                out[candidate.name] = str(error).partition("\n")[0]
        found.out[rows] = out
        found.timings[rows] = measure(
            contenders,
            _rows_of(facts.inputs, rows),
            baseline=fit[0].name,
            cold=cold,
            seconds=seconds,
        )
    return found


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


def decided(
    facts: LayerFacts, times: Measured, settings: Settings, *, packed: Stores | None = None
) -> LayerPlan:
    """Returns what a layer computes with, by the times of a layer like it."""
    stores = packed or Stores(facts)
    baseline = Candidate("torch", facts.layer.dtype)

    def error(candidate: Candidate) -> float:
        return facts.error(candidate, stores.of(candidate))

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
            except (ValueError, RuntimeError, NotImplementedError):
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
        stores.plan(candidate, choice.rows) for candidate, choice in zip(taken, choices, strict=True)
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


def _contender(
    facts: LayerFacts, stores: Stores, candidate: Candidate, rows: int, found: Measured
) -> Contender:
    """Returns what is timed, after its error has shown that it runs."""
    plan = stores.plan(candidate, rows)
    found.errors[candidate.name] = plan.error
    found.bytes[candidate.name] = plan.weight.nbytes
    layer = facts.layer
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


def held_bytes(stores: Mapping[int, WeightFormat] | Sequence[WeightFormat]) -> int:
    """Returns the bytes of these weights; tensors that share memory count once."""
    seen: dict[int, int] = {}
    extra = 0
    for store in stores.values() if isinstance(stores, Mapping) else stores:
        tensors = store.tensors().values()
        extra += store.nbytes - sum(tensor.nbytes for tensor in tensors)
        seen.update({tensor.data_ptr(): tensor.nbytes for tensor in tensors})
    return sum(seen.values()) + extra
