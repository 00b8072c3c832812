"""Gates on disk: what keeps what is in the settings, the factors of the scores in a side file.

`sparsecraft_config.json` says under "gates" where they come from (method, seed, calibration
fingerprint, versions) and what each place keeps; `gates.safetensors` holds `PLACE.norms`, float32,
where scores have factors. Loading puts the same gates back and calibrates nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sparsecraft.core.errors import CheckpointError
from sparsecraft.core.gating import ActivationGate, RandomGate
from sparsecraft.model.gate_hooks import InstalledGate, Origin, install, installed
from sparsecraft.model.gate_places import Place
from sparsecraft.model.packed import safetensors_bytes

GATES = "gates.safetensors"
_KINDS: Mapping[str, type[ActivationGate]] = {"magnitude": ActivationGate, "random": RandomGate}


def describe_gates(model: nn.Module) -> dict[str, Any] | None:
    """Returns what the settings say of a model's gates, or None if it has none."""
    gates = installed(model)
    if not gates:
        return None
    origin = next(iter(gates.values())).origin
    return {**asdict(origin), "places": {name: _described(hook) for name, hook in gates.items()}}


def gate_bytes(model: nn.Module) -> bytes:
    """Returns the content of the side file: the factors of the scores of every gate."""
    tensors = {
        f"{name}.norms": hook.gate.norms.detach().cpu().contiguous()
        for name, hook in installed(model).items()
        if hook.gate.norms is not None
    }
    return safetensors_bytes(tensors, {"format": "pt", "sparsecraft_gates": "1"})


def write_gates(model: nn.Module, folder: Path) -> None:
    """Writes the side file of a model's gates into a folder; nothing if it has none."""
    if installed(model):
        (folder / GATES).write_bytes(gate_bytes(model))


def read_gates(model: nn.Module, folder: Path, described: Mapping[str, Any]) -> None:
    """Installs the gates that a folder holds, exactly as they were saved.

    Args:
        model: With its weights, in its final shape.
        folder: Where `gates.safetensors` lies.
        described: What the settings say of the gates.

    Raises:
        CheckpointError: If the side file is missing or damaged, or names what is not there.
    """
    norms = _norms(folder / GATES)
    places: dict[Place, ActivationGate] = {}
    asked: dict[str, float] = {}
    modules = dict(model.named_modules())
    for name, settings in described["places"].items():
        place = Place(**{**settings["place"], "parameters": tuple(settings["place"]["parameters"])})
        if place.module not in modules:
            raise CheckpointError(
                f"{folder}: a gate belongs to {place.module!r}, which a {type(model).__name__} "
                "does not have. Were config or weights exchanged after it was saved?"
            )
        places[place] = _gate(name, settings, norms, folder)
        asked[name] = settings["asked"]
    kept = ("method", "seed", "calibration", "versions", "rotated")
    install(model, places, asked, Origin(**{key: described[key] for key in kept}))


def _described(hook: InstalledGate) -> dict[str, Any]:
    gate = hook.gate
    found = {
        "place": asdict(hook.place),
        "asked": hook.asked,
        "kind": next(kind for kind, cls in _KINDS.items() if type(gate) is cls),
        "keep": gate.keep,
        "threshold": gate.threshold,
        "prefill": gate.prefill,
        "norms": gate.norms is not None,
    }
    return {**found, "seed": gate.seed} if isinstance(gate, RandomGate) else found


def _gate(
    name: str, settings: Mapping[str, Any], norms: Mapping[str, Tensor], folder: Path
) -> ActivationGate:
    if settings["kind"] not in _KINDS:
        raise CheckpointError(
            f"{folder}: gates of the kind {settings['kind']!r} are not known, only "
            f"{sorted(_KINDS)}. Was it saved by a later sparsecraft?"
        )
    options = {key: settings[key] for key in ("keep", "threshold", "prefill")}
    if settings["norms"]:
        if f"{name}.norms" not in norms:
            raise CheckpointError(f"{folder / GATES} lacks {name}.norms; copy the directory again")
        options["norms"] = norms[f"{name}.norms"]
    if settings["kind"] == "random":
        options["seed"] = settings["seed"]
    return _KINDS[settings["kind"]](**options)


def _norms(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    if not path.is_file():
        raise CheckpointError(
            f"{path.parent} says that it has gates, but {path.name} is missing; copy it again"
        )
    try:
        return load_file(str(path))
    except Exception as error:
        raise CheckpointError(f"{path} is damaged: {error}. Copy the directory again.") from error
