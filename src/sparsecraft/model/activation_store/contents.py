"""What a store holds: its rows, where they come from, and how the harvest went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue, NonFinite
from sparsecraft.model.activation_store.table import Shard, Table
from sparsecraft.model.digests import digest

ROWS_AT_ONCE = 65536


@dataclass(frozen=True)
class HarvestReport:
    """How a harvest went.

    Args:
        contexts: Windows or examples that the model read.
        rows: Activations that are kept.
        special: Left out as special tokens, or as the first positions of a context.
        padding: Left out as padding.
        non_finite: Left out as NaN or infinite.
        bytes: What the store takes, on disk or in memory.
        kept_shards: Shards that an earlier, stopped run had made.
        remade_shards: Damaged shards that were made anew.
        remarks: What did not go as asked, such as a text with too few rows.
    """

    contexts: int
    rows: int
    special: int = 0
    padding: int = 0
    non_finite: int = 0
    bytes: int = 0
    kept_shards: int = 0
    remade_shards: int = 0
    remarks: tuple[str, ...] = ()

    def __str__(self) -> str:
        out = [
            f"{self.rows:,} activations of {self.contexts:,} contexts, {self.bytes / 1e6:,.1f} MB",
            f"left out: {self.special:,} special tokens, {self.padding:,} of padding, "
            f"{self.non_finite:,} not finite",
        ]
        if self.kept_shards or self.remade_shards:
            out.append(
                f"{self.kept_shards} shards were there already, {self.remade_shards} damaged ones "
                "were made anew"
            )
        return "\n".join([*out, *self.remarks])

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Contents:
    """The rows of a store and what is known about them.

    Args:
        table: The rows.
        at: The hook as it was named, or None for tensors.
        info: Where the activations come from: model, hook, context, tokenizer, ...
        digest: Changes with the model, the hook, the settings and the text.
        report: How the harvest went, or None for tensors.
        path: The folder, or None in memory.
    """

    table: Table
    digest: str
    at: str | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    report: HarvestReport | None = None
    path: Path | None = None


def contents_of_tensors(x: Tensor, gradient: Tensor | None, target: Tensor | None) -> Contents:
    """Returns tensors as contents, each row a context of its own.

    Args:
        x: (..., d_in).
        gradient: Like the target, or like x where there is none; or None.
        target: (..., d_out), as many rows, or None.

    Raises:
        InvalidValue: If the shapes do not fit, a type is no floating one, or there are no rows.
        NonFinite: For NaN or infinite values.
    """
    rows = _rows("x", x)
    others = {
        name: _rows(name, tensor)
        for name, tensor in (("gradient", gradient), ("target", target))
        if tensor is not None
    }
    for name, tensor in others.items():
        of_gradient = name == "gradient"
        like = "target" if of_gradient and "target" in others else "x"
        what = {"x": rows, **others}[like]
        if tensor.shape != what.shape if of_gradient else len(tensor) != len(rows):
            raise InvalidValue(
                f"{name} has the shape {tuple(tensor.shape)}, {like} {tuple(what.shape)}: give a "
                "row for each row of x" + (f", as wide as {like}" if of_gradient else "")
            )
    ones = torch.ones(len(rows), dtype=torch.int32)
    shard = Shard(rows, ones, torch.zeros_like(ones), **others)
    some = torch.linspace(0, len(rows) - 1, min(len(rows), 1024)).long()
    mark = digest([("rows", len(rows)), *((n, t[some]) for n, t in shard.parts().items())])
    return Contents(Table([shard]), mark)


def _rows(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point() or tensor.dim() < 2 or not tensor.numel():
        raise InvalidValue(
            f"{name} must be floating and (rows, width) with at least one row; {tensor.dtype} "
            f"{tuple(tensor.shape)} was given"
        )
    rows = tensor.detach().cpu().reshape(-1, tensor.shape[-1])
    bad = sum(int((~torch.isfinite(part)).any(1).sum()) for part in rows.split(ROWS_AT_ONCE))
    if bad:
        raise NonFinite(
            f"{bad} of {len(rows)} rows of {name} have NaN or infinite values: leave them out, or "
            "find where the model makes them (half precision often does)"
        )
    return rows
