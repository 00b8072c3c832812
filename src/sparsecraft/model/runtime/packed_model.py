"""A model as `pack` leaves it: what was chosen, the way back, and the way to disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.model.checkpoints import save
from sparsecraft.model.runtime.layers import LinearLayer, replace_module
from sparsecraft.model.runtime.record import RUNTIME, DecisionRecord


@dataclass(eq=False)
class Packed:
    """A model whose linear layers compute in the way that was chosen for them.

    Args:
        model: The module that was given, changed in place.
        record: What was measured and chosen, and why.
    """

    model: nn.Module
    record: DecisionRecord
    _originals: tuple[LinearLayer, ...]
    _kept: bool = True

    @property
    def bytes(self) -> int:
        """What the linear layers hold for inference; the originals kept for `undo` not counted."""
        return self.record.bytes

    def undo(self) -> nn.Module:
        """Puts the very modules back that were there before, gates and all, and returns the model.

        Raises:
            InvalidValue: If they were not kept.
        """
        self._check_kept("undo")
        for layer in self._originals:
            replace_module(self.model, layer.names, layer.module)
        self._originals = ()
        return self.model

    def save(self, directory: str | Path, *, overwrite: bool = False, **options: Any) -> Path:
        """Writes the model, exactly as it was before packing, without its zeros.

        The folder has bits and values instead of weights, and this record in `runtime.json`.
        `sparsecraft.load` gives the plain model back, bit for bit, and `pack(model,
        record=directory)` packs it as here without measuring again on a machine like this one.

        Args:
            directory: Where; it must not hold anything unless `overwrite`.
            overwrite: Whether a directory that exists is replaced.
            options: Further arguments of `checkpoints.save`, such as mask and settings.

        Raises:
            InvalidValue: If the exact weights were not kept.
            CheckpointError: If it exists, or cannot be written.
        """
        self._check_kept("save")
        extras = options.pop("extras", None)

        def add(folder: Path) -> None:
            self.record.save(folder / RUNTIME)
            if extras is not None:
                extras(folder)

        packed = [self.model.get_submodule(layer.name) for layer in self._originals]
        try:
            for layer in self._originals:
                replace_module(self.model, layer.names, layer.module)
            options = {"form": "packed", "overwrite": overwrite, **options}
            return save(self.model, directory, extras=add, **options)
        finally:
            for layer, module in zip(self._originals, packed, strict=True):
                replace_module(self.model, layer.names, module)

    def __enter__(self) -> Packed:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def _check_kept(self, what: str) -> None:
        if not self._kept:
            raise InvalidValue(
                f"{what}() needs the exact weights, which keep_original=False gave away; load the "
                "model anew"
            )
