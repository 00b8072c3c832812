"""Activations of a model on a text: harvested once, or made as they are read; in random order."""

from sparsecraft.model.activation_store.batch import ActivationBatch
from sparsecraft.model.activation_store.live import LiveActivations
from sparsecraft.model.activation_store.reader import Reader
from sparsecraft.model.activation_store.store import ActivationStore

__all__ = ["ActivationBatch", "ActivationStore", "LiveActivations", "Reader"]
