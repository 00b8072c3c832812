"""The stored forms of a layer's weight, made when they are needed, and what they hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from sparsecraft.kernels.linear import WeightFormat
from sparsecraft.model.runtime.candidates import Candidate
from sparsecraft.model.runtime.facts import LayerFacts
from sparsecraft.model.runtime.packed_linear import Plan


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


def held_bytes(stores: Iterable[WeightFormat]) -> int:
    """Returns the bytes of these weights; tensors that share memory count once."""
    seen: dict[int, int] = {}
    weights = list({id(store): store for store in stores}.values())
    for store in weights:
        seen.update({tensor.data_ptr(): tensor.nbytes for tensor in store.tensors().values()})
    beside = sum(w.nbytes - sum(t.nbytes for t in w.tensors().values()) for w in weights)
    return sum(seen.values()) + beside
