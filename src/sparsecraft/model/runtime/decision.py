"""Which candidate a layer computes with, and why, from the times and errors that were measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sparsecraft.model.runtime.candidates import Candidate
from sparsecraft.model.runtime.record import dense_names
from sparsecraft.model.runtime.timing import Timing

MARGIN = 0.03
"""A candidate must be faster than the layer as it was by so much, and in three rounds of four."""

Timings = Mapping[str, Timing]


@dataclass(frozen=True)
class Decision:
    """The candidate taken for a number of rows.

    Args:
        chosen: The candidate.
        why: In words.
        notes: Candidate name to why it was not taken, where that is not its time.
    """

    chosen: Candidate
    why: str
    notes: Mapping[str, str] = field(default_factory=dict)


def decide(
    timings: Timings,
    baseline: Candidate,
    error: Callable[[Candidate], float],
    tolerance: float,
) -> Decision:
    """Returns the fastest candidate within the tolerance that beats the baseline.

    Args:
        timings: Of each candidate, by name; the baseline's too.
        baseline: The layer as it was, which is always allowed.
        error: Gives a candidate's relative error; asked of the fastest first.
        tolerance: What it may be at most.
    """
    before = timings[baseline.name]
    faster = [name for name in timings if name != baseline.name and _beats(timings[name], before)]
    notes: dict[str, str] = {}
    for name in sorted(faster, key=lambda name: timings[name].median):
        candidate = Candidate.parse(name)
        found = error(candidate)
        if found <= tolerance:
            return Decision(candidate, _gain(timings, candidate, baseline), notes)
        notes[name] = f"error {found:.1e} exceeds the tolerance {tolerance:g}"
    return Decision(baseline, _why_as_it_was(timings, baseline, notes), notes)


def decide_once(
    timings: Mapping[int, Timings],
    baseline: Candidate,
    error: Callable[[Candidate], float],
    tolerance: float,
) -> dict[int, Decision]:
    """Returns decisions that share one stored weight, by number of rows.

    The store is taken whose slowdowns against the best multiply to the least, of those that are
    within the tolerance and not slower than the baseline at any number of rows.
    """
    by_store: dict[str, dict[int, Candidate]] = {}
    for rows, timed in timings.items():
        for name in sorted(timed, key=lambda name: timed[name].median, reverse=True):
            candidate = Candidate.parse(name)
            by_store.setdefault(candidate.store, {})[rows] = candidate
    notes: dict[str, str] = {}
    costs: dict[str, float] = {}
    for store, taken in by_store.items():
        if store == baseline.store or _allowed(taken, timings, baseline, error, tolerance, notes):
            costs[store] = math.fsum(
                math.log(timings[rows][candidate.name].median) for rows, candidate in taken.items()
            )
    best = min(costs, key=costs.__getitem__)
    made: dict[int, Decision] = {}
    for rows, candidate in by_store[best].items():
        if candidate == baseline:
            why = _why_as_it_was(timings[rows], baseline, notes) + ", stored once"
        else:
            why = _gain(timings[rows], candidate, baseline) + ", stored once for all rows"
        made[rows] = Decision(candidate, why, notes)
    return made


def _allowed(
    taken: Mapping[int, Candidate],
    timings: Mapping[int, Timings],
    baseline: Candidate,
    error: Callable[[Candidate], float],
    tolerance: float,
    notes: dict[str, str],
) -> bool:
    if set(taken) != set(timings):
        return False
    gains = [
        timings[rows][baseline.name].median / timings[rows][candidate.name].median
        for rows, candidate in taken.items()
    ]
    if min(gains) < 1 or max(gains) < 1 + MARGIN:
        return False
    for candidate in set(taken.values()):
        found = error(candidate)
        if found > tolerance:
            notes[candidate.name] = f"error {found:.1e} exceeds the tolerance {tolerance:g}"
            return False
    return True


def _beats(timing: Timing, before: Timing) -> bool:
    gains = sorted(timing.gain_over(before))
    return before.median >= (1 + MARGIN) * timing.median and gains[len(gains) // 4] > 1


def _gain(timings: Timings, candidate: Candidate, baseline: Candidate) -> str:
    mine = timings[candidate.name].median
    text = f"{candidate.name}: {timings[baseline.name].median / mine:.2f}x {baseline.name}"
    dense = [name for name in dense_names(candidate.dtype) if name in timings]
    if candidate.name in dense or not dense:
        return text
    fastest = min(dense, key=lambda name: timings[name].median)
    return f"{text}, {timings[fastest].median / mine:.2f}x the best dense {candidate.dtype}"


def _why_as_it_was(timings: Timings, baseline: Candidate, notes: Mapping[str, str]) -> str:
    others: Sequence[str] = [name for name in timings if name != baseline.name]
    if not others:
        return f"stays {baseline.name}: nothing else applies"
    if notes:
        listed = ", ".join(f"{name} ({note.split(' exceeds')[0]})" for name, note in notes.items())
        return f"stays {baseline.name}: what is faster exceeds the tolerance: {listed}"
    best = min(others, key=lambda name: timings[name].median)
    ratio = timings[baseline.name].median / timings[best].median
    return f"stays {baseline.name}: none is faster by {MARGIN:.0%} (best: {best}, {ratio:.2f}x)"
