"""The runtime: every linear layer computes in the way that was measured to be fastest for it.

`pack` measures, for each layer and number of rows, PyTorch's products and ours (dense, gated,
sparse) with the layer's own weight and inputs, keeps the fastest whose output stays within the
tolerance of the float32 one, and leaves the layer as it was where nothing is faster. A gated layer
may always be computed whole, which is only more exact. What was measured and why each choice was
made is in the decision record.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.kernels.processor import cache_bytes
from sparsecraft.model.blocks import is_conv1d
from sparsecraft.model.runtime.candidates import checked_choices
from sparsecraft.model.runtime.chooser import (
    LayerPlan,
    Memory,
    Settings,
    by_likeness,
    decided,
    measured,
    reused,
)
from sparsecraft.model.runtime.facts import LayerFacts
from sparsecraft.model.runtime.fingerprint import fingerprint
from sparsecraft.model.runtime.inputs import Batch, layer_inputs
from sparsecraft.model.runtime.layers import find_layers, replace_module
from sparsecraft.model.runtime.packed_linear import PackedLinear
from sparsecraft.model.runtime.packed_model import Packed
from sparsecraft.model.runtime.record import DecisionRecord
from sparsecraft.model.runtime.stores import Stores, held_bytes
from sparsecraft.model.runtime.timing import Measure, measure_in_turns
from sparsecraft.model.targets import Select

Progress = Callable[[str, int, int], None]
DTYPES = ("float32", "bfloat16", "int8")
TOLERANCE = 0.02


def pack(
    model: nn.Module,
    *,
    batch_sizes: Sequence[int] = (1, 32),
    dtypes: Iterable[str] = DTYPES,
    tolerance: float = TOLERANCE,
    formats: Iterable[str] | None = None,
    targets: Select = None,
    example: Batch | None = None,
    memory: Memory = "fast",
    keep_original: bool = True,
    record: DecisionRecord | str | Path | None = None,
    measure: Measure = measure_in_turns,
    seconds: float = 25.0,
    progress: Progress | None = None,
) -> Packed:
    """Makes the linear layers of a model compute as fast as this machine was measured to allow.

    Args:
        model: Any module in float32 or bfloat16, changed in place, for inference only. Pruned
            weights and installed gates are found by themselves.
        batch_sizes: Numbers of rows (tokens at once) to choose for; other numbers take the choice
            of the nearest. Decoding has one row for each sequence, a prompt has one for each token.
        dtypes: What weights may be stored in; of "float32", "bfloat16", "int8", "int4". Those wider
            than the layer's own are passed over.
        tolerance: Relative error, of each layer's output against float32, that is allowed.
        formats: What may be used, of `runtime.candidates.FORMATS`; None for all.
        targets: Which layers, see `find_targets`; None for all linear ones, the head too.
        example: Keyword arguments of one forward pass, whose activations errors and gates are
            judged by. None draws random tokens or pixels.
        memory: "fast" keeps the fastest form for each number of rows, which may mean several of
            one weight; "small" keeps one.
        keep_original: Whether the exact weights stay in memory too, for `undo` and `save`.
        record: A decision record, its file, or a folder with it. If it was measured on a machine
            like this one, with these settings, its choices are taken without measuring.
        measure: How candidates are timed.
        seconds: About how long all measurements together may take.
        progress: Called with (stage, done, total).

    Returns:
        The model, the decision record, and the way back.

    Raises:
        InvalidValue: For settings that are not allowed, or a model that is packed already.
        UnknownName: For a format or a type that does not exist.
        NoMatch: If there is no linear layer to pack.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
        >>> packed = pack(net, batch_sizes=(1,), dtypes=("float32",))
        >>> [(choice.layer, choice.rows) for choice in packed.record.choices]
        [('0', 1)]
        >>> packed.undo() is net
        True
    """
    begin = time.perf_counter()
    settings = _settings(batch_sizes, formats, dtypes, tolerance, memory)
    found, left = find_layers(model, targets)
    inputs, origin = layer_inputs(model, found, example)
    facts = [LayerFacts.of(layer, inputs.pop(layer.name)) for layer in found]
    machine = fingerprint(found[0].weight.device)
    cold = _exceeds_cache(model)
    with torch.no_grad():
        plans, more = _known(facts, settings, record, machine)
        if plans is None:
            plans = _measured(facts, settings, measure, cold, seconds, progress)
        made = [_with_bytes(plan) for plan in plans]
    _put(model, made)
    changed = tuple(plan.facts.layer for plan in made if not plan.unchanged)
    written = DecisionRecord(
        machine=machine,
        settings=settings.to_json(),
        choices=tuple(choice for plan in made for choice in plan.choices),
        left_alone=left,
        notes=(f"inputs: {origin}", _temperature(cold), *_unmeasured(machine, facts), *more),
        bytes=held_bytes([p.weight for plan in made for p in plan.plans]),
        dense_bytes=sum(each.layer.weight.nbytes for each in facts),
        seconds=round(time.perf_counter() - begin, 2),
    )
    kept = changed if keep_original else ()
    return Packed(model, written, kept, keep_original or not changed)


def _unmeasured(machine: Mapping[str, Any], facts: Sequence[LayerFacts]) -> list[str]:
    """Returns a line for each kind of kernel that could not be tried here."""
    notes = []
    if not facts[0].layer.weight.is_cuda:
        notes.append(
            "formats for a GPU (2:4, gathered rows): not measured, the model is on the CPU"
        )
    if str(machine["native"]).startswith("none"):
        notes.append(f"native kernels: {machine['native']}")
    return notes


def _settings(
    batch_sizes: Sequence[int],
    formats: Iterable[str] | None,
    dtypes: Iterable[str],
    tolerance: float,
    memory: Memory,
) -> Settings:
    sizes = tuple(sorted(set(batch_sizes)))
    if not sizes or sizes[0] < 1:
        raise InvalidValue(f"batch_sizes={batch_sizes!r} is not allowed: give numbers from 1 up")
    if not 0 <= tolerance < 1:
        raise InvalidValue(f"tolerance={tolerance!r} is not allowed: give a share in [0, 1)")
    if memory not in ("fast", "small"):
        raise InvalidValue(f"memory={memory!r} is not known; choose 'fast' or 'small'")
    chosen, types = checked_choices(formats, dtypes)
    return Settings(
        batch_sizes=sizes, formats=chosen, dtypes=types, tolerance=float(tolerance), memory=memory
    )


def _known(
    facts: Sequence[LayerFacts],
    settings: Settings,
    record: DecisionRecord | str | Path | None,
    machine: dict[str, Any],
) -> tuple[list[LayerPlan] | None, tuple[str, ...]]:
    """Returns the plans of a record, or None and why it does not hold here."""
    if record is None:
        return None, ()
    given = record if isinstance(record, DecisionRecord) else DecisionRecord.load(record)
    for what, theirs, ours in (
        ("machine", given.machine, machine),
        ("settings", given.settings, settings.to_json()),
    ):
        differing = [key for key in ours if theirs.get(key) != ours[key]]
        if differing:
            return None, (f"measured again: the record's {what} differ in {', '.join(differing)}",)
    plans = [reused(each, given, settings) for each in facts]
    missing = [f.layer.name for f, plan in zip(facts, plans, strict=True) if plan is None]
    if missing:
        return None, (f"measured again: the record does not fit {', '.join(missing[:3])}",)
    return [plan for plan in plans if plan is not None], ("choices taken from a record",)


def _measured(
    facts: Sequence[LayerFacts],
    settings: Settings,
    measure: Measure,
    cold: bool,
    seconds: float,
    progress: Progress | None,
) -> list[LayerPlan]:
    groups = by_likeness(facts)
    share = seconds / (len(groups) * len(settings.batch_sizes))
    made: dict[str, LayerPlan] = {}
    for index, group in enumerate(groups):
        if progress is not None:
            progress(group[0].layer.name, index, len(groups))
        first = Stores(group[0])
        times = measured(first, settings, measure, cold=cold, seconds=share)
        for stores in (first, *map(Stores, group[1:])):
            made[stores.facts.layer.name] = decided(stores, times, settings)
    if progress is not None:
        progress("packed", len(groups), len(groups))
    return [made[each.layer.name] for each in facts]


def _with_bytes(plan: LayerPlan) -> LayerPlan:
    """Returns the plan with what each choice holds and how exact it is."""
    choices = tuple(
        replace(choice, bytes=each.weight.nbytes, error=each.error)
        for choice, each in zip(plan.choices, plan.plans, strict=True)
    )
    return replace(plan, choices=choices)


def _put(model: nn.Module, plans: Sequence[LayerPlan]) -> None:
    for plan in plans:
        if plan.unchanged:
            continue
        layer = plan.facts.layer
        bias = layer.module.bias
        packed = PackedLinear(
            plan.plans,
            bias if isinstance(bias, nn.Parameter) else None,
            transposed=is_conv1d(layer.module),
        )
        replace_module(model, layer.names, packed.train(layer.module.training))


def _exceeds_cache(model: nn.Module) -> bool:
    """Returns whether the model's weights cannot all stay in the cache between two tokens."""
    return sum(parameter.nbytes for parameter in model.parameters()) > cache_bytes()


def _temperature(cold: bool) -> str:
    size = f"the cache of {cache_bytes() / 2**20:.0f} MiB"
    clock = "processor time of one thread" if torch.get_num_threads() == 1 else "wall time"
    if cold:
        return f"{clock}, weights from memory, because the model exceeds {size}"
    return f"{clock}, weights in the cache, because the model fits into {size}"
