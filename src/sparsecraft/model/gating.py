"""Gates a model's activations at inference: `gate(model, "wina", sparsity=0.65)`.

The host of the kind Gate: it finds the places, lets the method prepare the model (a rotation),
gathers calibration activations, installs the gates as hooks and says what they drop. The zeros are
only simulated by masks here; `sparsecraft.pack` makes kernels that skip them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from sparsecraft.core import catalog
from sparsecraft.core.errors import InvalidValue, NonFinite
from sparsecraft.core.gating import ActivationGate
from sparsecraft.core.kinds import Gate, Method
from sparsecraft.model.digests import digest_of_batches
from sparsecraft.model.gate_calibration import Fitted, fit_gates
from sparsecraft.model.gate_hooks import Origin, install, installed, installed_gates, remove
from sparsecraft.model.gate_memory import check_memory, gate_memory
from sparsecraft.model.gate_places import Places, find_activation_places, find_input_places
from sparsecraft.model.gate_report import GateReport, PlaceReport, sparsity_report
from sparsecraft.model.pruning import count_tokens
from sparsecraft.model.rotated_block import rotated_blocks
from sparsecraft.model.rotation_requirements import quantised
from sparsecraft.model.targets import Select

__all__ = ["GateReport", "Gated", "check", "gate", "installed_gates", "remove", "sparsity_report"]

Batch = Mapping[str, Any]
Progress = Callable[[str, int, int], None]
FEW_TOKENS = 2048
"""Fewer calibration tokens than these are remarked upon where thresholds are chosen on them."""
SIMULATED = (
    "zeros in activations alone bring no speed: the products are computed dense with masked "
    "inputs; sparsecraft.pack(model) puts kernels in that skip them where that is measured faster"
)


@dataclass
class Gated:
    """A gated model; as a context manager it takes the gates out again at the end.

    Args:
        model: The model itself, changed in place.
        report: What was done.
        preparation: What the method did to the model first, such as a `Rotation`, or None.
    """

    model: nn.Module
    report: GateReport
    preparation: Any = None

    @property
    def gates(self) -> dict[str, ActivationGate]:
        """Every gate by the name of its place."""
        return {name: hook.gate for name, hook in installed(self.model).items()}

    def undo(self) -> nn.Module:
        """Takes back gates and preparation, and returns the model as it was."""
        remove(self.model)
        if self.preparation is not None:
            self.preparation.undo()
            self.preparation = None
        return self.model

    def save(self, directory: str | Path, *, overwrite: bool = False) -> Path:
        """Writes the gated model, to be read with `sparsecraft.load`, and returns the directory."""
        from sparsecraft.model.checkpoints import save

        settings = {"gating": self.report.to_json()}
        return save(self.model, directory, settings=settings, form="augmented", overwrite=overwrite)

    def __enter__(self) -> Gated:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.undo()


def gate(
    model: nn.Module,
    method: str | Method = "wina",
    *,
    calibration: Sequence[Batch] | None = None,
    targets: Select = None,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> Gated:
    """Gates a model's activations in place and returns what was done, with the way back.

    Args:
        model: Any torch module; Hugging Face models in particular.
        method: Name in the catalog, "file.py:Class", or a Gate that is built already.
        calibration: Batches of forward arguments. Needed for thresholds and greedy allocations;
            what was achieved is measured on them.
        targets: Which matrices, as for `find_targets`; by default those of the blocks.
        seed: Of everything random.
        progress: Called with (stage, done, total).
        options: Settings of the method, for example sparsity=0.65, rule="threshold".

    Returns:
        The model with its report; `undo()` restores the model exactly.

    Raises:
        SparsityError: Naming what is wrong; the model is then as it was.

    Example:
        >>> layer = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> with gate(layer, "teal", rule="topk", sparsity=0.5) as gated:
        ...     sorted(gated.gates)
        ['0', '2']
    """
    begin = time.perf_counter()
    batches = list(calibration or ())
    chosen, found = check(model, method, targets=targets, calibrated=bool(batches), **options)
    tokens = count_tokens(batches)
    check_memory(gate_memory(model, chosen, found, tokens), tokens)
    modes = {module: module.training for module in model.modules()}
    prepared = chosen.prepare(model)
    try:
        places = _places(model, chosen, targets)
        origin = _origin(chosen, seed, batches, rotated=bool(rotated_blocks(model)))
        with torch.no_grad():
            fitted = fit_gates(model, chosen, places, batches, origin, progress)
        remove(model)
        install(model, fitted.gates, fitted.asked, origin)
        rows = _rows(model, batches)
    except BaseException:
        remove(model)
        if prepared is not None:
            prepared.undo()
        raise
    finally:
        for module, mode in modes.items():
            module.training = mode
    report = GateReport(
        method=chosen,
        rows=rows,
        skipped=places.skipped,
        seconds=time.perf_counter() - begin,
        seed=seed,
        calibration_tokens=tokens,
        searches=fitted.searches,
        notes=tuple(_notes(chosen, fitted, batches, prepared)),
    )
    return Gated(model, report, prepared)


def check(
    model: nn.Module,
    method: str | Method,
    *,
    targets: Select = None,
    calibrated: bool = True,
    **options: Any,
) -> tuple[Gate, Places]:
    """Returns the method and the places it would gate, or raises; nothing is changed.

    Args:
        model: The model.
        method: As for `gate`.
        targets: As for `gate`.
        calibrated: Whether calibration data will be given.
        options: Settings of the method.

    Raises:
        SparsityError: For unknown names, a model that is gated or quantised already, weights that
            are not finite, targets that match nothing, or missing calibration data.
    """
    chosen = catalog.build(method, **options)
    if not isinstance(chosen, Gate):
        raise InvalidValue(
            f"{chosen.info.name} is a {chosen.info.kind} method; gate takes Gate ones, such as "
            "wina, teal and cats. `sparsecraft methods` says which verb uses it."
        )
    _refuse_gated(model)
    _refuse_quantised(model)
    places = _places(model, chosen, targets)
    if not calibrated and (chosen.needs_values() or chosen.greedy_step() is not None):
        what = "thresholds" if chosen.needs_values() else "the greedy allocation"
        raise InvalidValue(
            f"{chosen.info.name}: {what} are chosen on data, and none was given. Give calibration "
            "data (calibration=..., --calibration text.txt)"
            + (', or keep an exact count (rule="topk").' if hasattr(chosen, "rule") else ".")
        )
    for place in places:
        for name in place.parameters:
            if not torch.isfinite(model.get_parameter(name)).all():
                raise NonFinite(f"{name} has NaN or infinite weights; the model was not touched")
    return chosen, places


def _places(model: nn.Module, method: Gate, targets: Select) -> Places:
    if method.sites == "inputs":
        return find_input_places(model, targets)
    return find_activation_places(model, targets, gated=method.sites == "gated activations")


def _refuse_gated(model: nn.Module) -> None:
    gates = installed(model)
    if gates:
        origin = next(iter(gates.values())).origin.method
        raise InvalidValue(
            f"the model has {len(gates)} gates already ({origin.get('method')}, sparsity "
            f"{origin.get('sparsity')}): undo() them first, or gate the model as it was before."
        )


def _refuse_quantised(model: nn.Module) -> None:
    found = quantised(model)
    if found:
        raise InvalidValue(
            f"the model is quantised ({found}): its weights are no plain floats, so their norms "
            "cannot be read nor the model rotated. Gate the model as it was before; "
            "sparsecraft.pack then stores it in int8 where that is fast."
        )


def _origin(method: Gate, seed: int, batches: Sequence[Batch], *, rotated: bool) -> Origin:
    calibration: dict[str, Any] = {}
    if batches:
        calibration = {"tokens": count_tokens(batches), "fingerprint": digest_of_batches(batches)}
    return Origin(catalog.describe(method), seed, calibration, _versions(), rotated)


def _versions() -> dict[str, str]:
    import sparsecraft

    return {"sparsecraft": sparsecraft.__version__, "torch": str(torch.__version__)}


def _rows(model: nn.Module, batches: Sequence[Batch]) -> tuple[PlaceReport, ...]:
    if batches:
        return sparsity_report(model, batches).rows
    return tuple(
        PlaceReport(p.name, p.at, p.features, p.numel, hook.asked)
        for hook in installed(model).values()
        for p in (hook.place,)
    )


def _notes(method: Gate, fitted: Fitted, batches: Sequence[Batch], prepared: Any) -> list[str]:
    notes = list(fitted.notes)
    tokens = count_tokens(batches)
    if not batches:
        notes.append("what was achieved is not measured: no calibration data was given")
    elif method.needs_values() and tokens < FEW_TOKENS:
        notes.append(
            f"thresholds were chosen on {tokens} tokens, fewer than {FEW_TOKENS}: on other text "
            "the sparsity may differ from what was asked"
        )
    done = getattr(prepared, "report", None)
    if done is not None:
        notes += done.notes
    return [*notes, *method.remarks(), SIMULATED]
