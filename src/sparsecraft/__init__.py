"""sparsecraft makes neural networks sparse and measures what it brings: quality, bytes, seconds."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Loaded when first asked for, so that `import sparsecraft` costs next to nothing.
_PUBLIC = {
    "prune": "sparsecraft.model.pruning",
    "gate": "sparsecraft.model.gating",
    "pack": "sparsecraft.model.runtime",
    "Sparsifier": "sparsecraft.model.sparsifier",
    "SparsifierCallback": "sparsecraft.model.trainer_callback",
    "ActivationStore": "sparsecraft.model.activation_store",
    "SparseAutoencoder": "sparsecraft.model.sae",
    "load": "sparsecraft.model.checkpoints",
    "compact": "sparsecraft.model.compaction",
    "compare": "sparsecraft.lab.compare",
    "evaluate": "sparsecraft.domains.interpretability",
    "reproduce": "sparsecraft.lab.claims",
    "methods": "sparsecraft.core.catalog",
    "Mask": "sparsecraft.core.mask",
    "SparsityError": "sparsecraft.core.errors",
}

__all__ = [
    "ActivationStore",
    "Mask",
    "SparseAutoencoder",
    "Sparsifier",
    "SparsifierCallback",
    "SparsityError",
    "compact",
    "compare",
    "evaluate",
    "gate",
    "load",
    "methods",
    "pack",
    "prune",
    "reproduce",
]

if TYPE_CHECKING:
    from sparsecraft.core import catalog as methods
    from sparsecraft.core.errors import SparsityError
    from sparsecraft.core.mask import Mask
    from sparsecraft.model.activation_store import ActivationStore
    from sparsecraft.model.sae import SparseAutoencoder
    from sparsecraft.model.sparsifier import Sparsifier
    from sparsecraft.model.trainer_callback import SparsifierCallback


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sparsecraft' has no attribute {name!r}")
    module = importlib.import_module(_PUBLIC[name])
    return module if name == "methods" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
