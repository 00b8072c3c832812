"""What an `ActivationMonitor` found: figures of each layer, and what must be known to read them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparsecraft.model.activation_counts import Counts
from sparsecraft.model.mlp_sites import MLPSite


@dataclass(frozen=True)
class LayerActivity:
    """What was counted at one site.

    Args:
        site: Where.
        tokens: How many were counted, padding left out.
        nonzero: Share of the entries that fired, averaged over tokens.
        frequencies: (neurons,) share of the tokens for which each neuron fired.
        quantiles: Firing neurons of a token: the least, median and most.
        reach: Share of the model's tokens that came here; below 1 for an expert.
    """

    site: MLPSite
    tokens: int
    nonzero: float
    frequencies: Tensor = field(repr=False)
    quantiles: tuple[int, int, int]
    reach: float = 1.0

    @classmethod
    def of(cls, site: MLPSite, counts: Counts) -> LayerActivity:
        """Returns the figures of counts that hold at least one token."""
        fires = counts.fires if counts.fires is not None else torch.zeros(0)
        return cls(
            site,
            counts.tokens,
            counts.share,
            fires.double().cpu() / max(1, counts.tokens),
            (counts.quantile(1e-12), counts.quantile(0.5), counts.quantile(1.0)),
            counts.reach,
        )

    @property
    def dead(self) -> int:
        """Neurons that never fired."""
        return int((self.frequencies == 0).sum())

    @property
    def neurons(self) -> int:
        """Entries of a token."""
        return len(self.frequencies)

    @property
    def flops(self) -> dict[str, float] | None:
        """FLOPs of a token that comes here: "first" products, "second" and "second dense".

        None where the matrices are unknown. The first product is always counted whole: which
        neurons fire is known only after it.
        """
        if not self.site.width:
            return None
        product = 2.0 * self.site.width * self.neurons
        first = product * (2 if self.site.gated else 1)
        return {"first": first, "second": product * self.nonzero, "second dense": product}

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values."""
        low, median, high = self.quantiles
        return {
            "name": self.site.name,
            "activation": self.site.kind,
            "gated": self.site.gated,
            "tokens": self.tokens,
            "neurons": self.neurons,
            "nonzero": self.nonzero,
            "firing neurons of a token": {"least": low, "median": median, "most": high},
            "neurons that never fired": self.dead,
            "flops of a token": self.flops,
        }


@dataclass(frozen=True)
class ActivityReport:
    """What a monitor counted.

    Args:
        layers: By site, in the model's order.
        threshold: What an entry's magnitude had to exceed.
        notes: What a reader of the figures must know, in plain words.
    """

    layers: tuple[LayerActivity, ...]
    threshold: float
    notes: tuple[str, ...]

    @property
    def nonzero(self) -> float:
        """The mean of the layers' shares of non-zeros."""
        return sum(layer.nonzero for layer in self.layers) / len(self.layers)

    @property
    def flops(self) -> dict[str, float]:
        """Mean FLOPs of a token in all MLPs whose matrices are known, see `LayerActivity.flops`.

        An expert counts for the share of the tokens that are routed to it.
        """
        known = [(each.reach, each.flops) for each in self.layers if each.flops is not None]
        names = ("first", "second", "second dense")
        return {name: sum(reach * flops[name] for reach, flops in known) for name in names}

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values."""
        return {
            "nonzero": self.nonzero,
            "threshold": self.threshold,
            "layers": [layer.to_json() for layer in self.layers],
            "flops of a token": self.flops,
            "notes": list(self.notes),
        }

    def table(self) -> str:
        """Returns a Markdown table of the layers, and the notes."""
        head = "| MLP | activation | non-zero | of a token: least, median, most | never fired |"
        rows = [
            f"| {each.site.name} | {each.site.kind} | {each.nonzero:.1%} | "
            f"{', '.join(map(str, each.quantiles))} of {each.neurons} | {each.dead} |"
            for each in self.layers
        ]
        notes = [f"- {note}" for note in self.notes]
        return "\n".join([head, "|---|---|---|---|---|", *rows, *([""] if notes else []), *notes])


def never_zero(
    layers: Sequence[LayerActivity], threshold: float, gated: Collection[str] = ()
) -> list[str]:
    """Returns the notes on layers whose activation is never exactly zero.

    Args:
        layers: What was counted.
        threshold: Above which.
        gated: Names of the sites where a gate makes zeros.
    """
    if threshold > 0:
        return [f"counted are entries of magnitude above {threshold:g}, not exact non-zeros"]
    layers = [layer for layer in layers if layer.site.name not in gated]
    kinds = dict.fromkeys(layer.site.kind for layer in layers if layer.site.smooth)
    notes = [
        f"{kind} is never exactly zero, so that its share of non-zeros says nothing: give a "
        "threshold (threshold=0.01), or train with ReLU"
        for kind in kinds
    ]
    full = [
        layer.site.name for layer in layers if layer.nonzero == 1 and layer.site.kind == "function"
    ]
    if full:
        notes.append(
            f"no entry of {', '.join(full[:3])}{', ...' if len(full) > 3 else ''} was zero: "
            "perhaps a smooth activation such as GELU; give a threshold (threshold=0.01)"
        )
    return notes
