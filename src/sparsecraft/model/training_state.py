"""What a Sparsifier saves, and the checks before it takes a saved state up again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsecraft.core import catalog
from sparsecraft.core.errors import CheckpointError
from sparsecraft.core.mask import pack_bits, unpack_bits
from sparsecraft.model.training_report import Event

if TYPE_CHECKING:
    from sparsecraft.model.sparsifier import Sparsifier

_FORMAT = "sparsecraft sparsifier"
_VERSION = 1


def state_of(sparsifier: Sparsifier) -> dict[str, Any]:
    """Returns everything that the training needs to go on, in plain values and tensors."""
    return {
        "format": _FORMAT,
        "version": _VERSION,
        **_identity(sparsifier),
        "step": sparsifier.step,
        "rate": sparsifier.rate,
        "masks": {n: pack_bits(m.mask) for n, m in sparsifier.layers.items() if m.mask is not None},
        "active": {n: [pack_bits(each) for each in pair] for n, pair in sparsifier.active.items()},
        "layers": {n: _copied(layer.state) for n, layer in sparsifier.layers.items()},
        "model_state": _copied(sparsifier.model_state),
        "own": sparsifier.own.state_dict(),
        "history": [event.to_json() for event in sparsifier.history],
    }


@torch.no_grad()
def load_state(sparsifier: Sparsifier, state: Mapping[str, Any]) -> None:
    """Takes up a state; nothing is changed where it does not fit.

    Raises:
        CheckpointError: Naming what differs.
    """
    if state.get("format") != _FORMAT:
        raise CheckpointError(
            "this is not the state of a Sparsifier: give what sparsifier.state_dict() returned"
        )
    if state["version"] > _VERSION:
        raise CheckpointError(
            f"the state is of version {state['version']}, this sparsecraft reads up to {_VERSION}"
        )
    for name, mine in _identity(sparsifier).items():
        if state[name] != mine:
            raise CheckpointError(
                f"the checkpoint has another {name.replace('_', ' ')}: {state[name]}, here {mine}. "
                "A training goes on only with the settings it began with."
            )
    sparsifier.own.load_state_dict(state["own"])
    sparsifier.step, sparsifier.rate = state["step"], state["rate"]
    sparsifier.history = [Event(**event) for event in state["history"]]
    sparsifier.model_state.clear()
    sparsifier.model_state.update(_copied(state["model_state"]))
    for name, layer in sparsifier.layers.items():
        device = _device(sparsifier)
        bits = state["masks"].get(name)
        layer.mask = None if bits is None else unpack_bits(bits, layer.shape).to(device)
        layer.state.clear()
        layer.state.update(_copied(state["layers"][name]))
        layer.cache.clear()
        if name in state["active"]:
            ever, always = (unpack_bits(b, layer.shape).to(device) for b in state["active"][name])
            sparsifier.active[name] = (ever, always)


def _identity(sparsifier: Sparsifier) -> dict[str, Any]:
    """Returns what must be equal for a state to fit."""
    described = json.dumps(catalog.describe(sparsifier.method), default=str, sort_keys=True)
    shapes = {layer.name: list(layer.shape) for layer in sparsifier.layers.values()}
    return {
        "method": described,
        "total_steps": sparsifier.total_steps,
        "seed": sparsifier.seed,
        "targets": json.dumps(shapes),
    }


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}


def _device(sparsifier: Sparsifier) -> torch.device:
    return next(sparsifier.model.parameters()).device
