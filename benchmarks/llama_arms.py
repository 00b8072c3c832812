"""The arms of `bench_llama`: how each is made, in which settings, and what it is stored in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

import sparsecraft
from sparsecraft.model.checkpoints import save

Kind = Literal["dense", "weights", "gate"]
DENSE = ("torch", "dense")
FORMATS: Mapping[Kind, tuple[str, ...]] = {
    "dense": DENSE,
    "weights": (*DENSE, "bitmask", "csr"),
    "gate": (*DENSE, "gated", "by_input"),
}
GREEDY = {"allocation": "greedy", "step": 0.2}
SETTINGS: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "wanda": ({}, {"allocation": "erk"}),
    "random": ({}, {"allocation": "erk"}),
    "sparsegpt": ({}, {"damping": 0.1}),
    "dsnot": ({}, {"start": "sparsegpt", "updated_weights": True}),
    "teal": ({"rule": "topk"}, {"rule": "threshold"}, {"rule": "threshold", **GREEDY}),
    "wina": (
        {"transform": True},
        {"transform": False, "norms": "all"},
        {"transform": False, "norms": "all", **GREEDY},
    ),
    "cats": ({}, {"layer_wise": True}),
    "random_gate": ({},),
}
"""What each method may choose from, on validation windows."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A form of the model.

    Args:
        kind: What is sparse.
        method: Name in the catalog; "" for dense.
        sparsity: Asked.
        store: What the linear layers' weights are stored in.
        packed: Whether the runtime chooses the kernels, or PyTorch's own run as they are.
        load: Type of the activations.
    """

    kind: Kind
    store: str
    method: str = ""
    sparsity: float = 0.0
    packed: bool = True
    load: str = "float32"

    @property
    def name(self) -> str:
        """For the table."""
        if self.kind == "dense":
            return f"{'dense' if self.packed else 'torch'} {self.store}"
        return f"{self.method} {self.sparsity:.0%} {self.store}"

    @property
    def slug(self) -> str:
        """For file names."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    @property
    def made(self) -> str:
        """Name of the model before it is stored; arms of one method and sparsity share it."""
        return f"{self.method}-{round(100 * self.sparsity)}" if self.method else "dense"

    @property
    def pack_settings(self) -> dict[str, Any]:
        """Arguments of `pack`; four bits need more tolerance than any other type."""
        four = self.store == "int4"
        formats = ("torch",) if four else FORMATS[self.kind]
        return {
            "dtypes": (self.store,),
            "formats": formats,
            "tolerance": 0.5 if four else 0.02,
            "batch_sizes": (1,),
        }


def every_arm() -> list[Arm]:
    """Returns all arms of the table, the reference first."""
    arms = [
        Arm(kind="dense", store="float32", packed=False),
        Arm(kind="dense", store="bfloat16", packed=False, load="bfloat16"),
        *(Arm(kind="dense", store=store) for store in ("float32", "bfloat16", "int8", "int4")),
    ]
    for method, sparsity in (
        ("wanda", 0.5), ("dsnot", 0.5), ("dsnot", 0.6), ("sparsegpt", 0.5), ("sparsegpt", 0.6),
        ("random", 0.5),
    ):  # fmt: skip
        arms.append(Arm(kind="weights", method=method, sparsity=sparsity, store="bfloat16"))
    arms.append(Arm(kind="weights", method="sparsegpt", sparsity=0.5, store="int8"))
    for method in ("teal", "wina"):
        for sparsity in (0.5, 0.65):
            for store in ("bfloat16", "int8"):
                arms.append(Arm(kind="gate", method=method, sparsity=sparsity, store=store))
    arms.append(Arm(kind="gate", method="cats", sparsity=0.5, store="bfloat16"))
    arms.append(Arm(kind="gate", method="random_gate", sparsity=0.5, store="bfloat16"))
    return arms


def quick_arms() -> list[Arm]:
    """Returns a few arms of every kind, for a smoke test."""
    wanted = {
        "torch float32", "dense int8", "wanda 50% bfloat16", "dsnot 50% bfloat16",
        "teal 50% bfloat16", "wina 50% int8", "cats 50% bfloat16", "random_gate 50% bfloat16",
    }  # fmt: skip
    return [arm for arm in every_arm() if arm.name in wanted]


def apply(arm: Arm, model: nn.Module, settings: Mapping[str, Any], calibration: list) -> Any:
    """Prunes or gates the model in place and returns what is needed to save it."""
    options = {"sparsity": arm.sparsity, "seed": 0, **settings}
    if arm.kind == "gate":
        return sparsecraft.gate(model, arm.method, calibration=calibration, **options)
    if arm.method != "random":
        options["calibration"] = calibration
    return model, sparsecraft.prune(model, arm.method, **options)


def save_made(arm: Arm, made: Any, folder: Path) -> None:
    """Writes a pruned or gated model."""
    if arm.kind == "gate":
        made.save(folder)
        return
    model, report = made
    save(model, folder, mask=report.mask, settings={"pruning": report.to_json()})
