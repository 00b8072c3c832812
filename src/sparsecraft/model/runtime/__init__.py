"""The runtime: `pack(model)` makes zeros, gates and small types save time where they can."""

from sparsecraft.model.runtime.packing import Packed, pack
from sparsecraft.model.runtime.record import CandidateRecord, DecisionRecord, LayerChoice

__all__ = ["CandidateRecord", "DecisionRecord", "LayerChoice", "Packed", "pack"]
