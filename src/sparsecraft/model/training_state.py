"""What a Sparsifier saves, and the checks before it takes a saved state up again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparsecraft.core import catalog
from sparsecraft.core.errors import CheckpointError
from sparsecraft.core.mask import pack_bits, unpack_bits
from sparsecraft.model.trained_model import TrainedModel
from sparsecraft.model.training_report import Event

_FORMAT = "sparsecraft sparsifier"
_VERSION = 1


def state_of(trained: TrainedModel) -> dict[str, Any]:
    """Returns everything that the training needs to go on, in plain values and tensors."""
    return {
        "format": _FORMAT,
        "version": _VERSION,
        **_identity(trained),
        "step": trained.step,
        "rate": trained.rate,
        "masks": {n: pack_bits(m.mask) for n, m in trained.layers.items() if m.mask is not None},
        "active": {n: [pack_bits(each) for each in pair] for n, pair in trained.active.items()},
        "layers": {n: _copied(layer.state) for n, layer in trained.layers.items()},
        "model_state": _copied(trained.model_state),
        "own": trained.own.state_dict(),
        "history": [event.to_json() for event in trained.history],
    }


@torch.no_grad()
def load_state(trained: TrainedModel, state: Mapping[str, Any]) -> None:
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
    for name, mine in _identity(trained).items():
        if state[name] != mine:
            raise CheckpointError(
                f"the checkpoint has another {name.replace('_', ' ')}: {state[name]}, here {mine}. "
                "A training goes on only with the settings it began with."
            )
    trained.own.load_state_dict(state["own"])
    trained.step, trained.rate = state["step"], state["rate"]
    trained.history = [Event(**event) for event in state["history"]]
    trained.model_state.clear()
    trained.model_state.update(_copied(state["model_state"]))
    for name, layer in trained.layers.items():
        device = _device(trained)
        bits = state["masks"].get(name)
        layer.mask = None if bits is None else unpack_bits(bits, layer.shape).to(device)
        layer.state.clear()
        layer.state.update(_copied(state["layers"][name]))
        layer.cache.clear()
        if name in state["active"]:
            ever, always = (unpack_bits(b, layer.shape).to(device) for b in state["active"][name])
            trained.active[name] = (ever, always)


def _identity(trained: TrainedModel) -> dict[str, Any]:
    """Returns what must be equal for a state to fit."""
    described = json.dumps(catalog.describe(trained.method), default=str, sort_keys=True)
    shapes = {layer.name: list(layer.shape) for layer in trained.layers.values()}
    return {
        "method": described,
        "total_steps": trained.total_steps,
        "seed": trained.seed,
        "targets": json.dumps(shapes),
    }


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}


def _device(trained: TrainedModel) -> torch.device:
    return next(trained.model.parameters()).device
