"""What a training step keeps of its rows once their gradients are there.

A batch that does not fit into memory is worked on in pieces, whose records are joined as those of
ranks are. Codes and pre-activations, the largest tensors of a step, are gone with the piece.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsecraft.core.code import Code
from sparsecraft.core.kinds import Side
from sparsecraft.core.kinds.activation import Reduction
from sparsecraft.model.ranks import join_statistics
from sparsecraft.model.sae.objective import Objective

if TYPE_CHECKING:
    from sparsecraft.model.sae.autoencoder import SparseAutoencoder


@dataclass(frozen=True)
class StepRecord:
    """A batch, or a piece of one, after its backward pass.

    Args:
        rows: How many.
        losses: Mean over the rows of each weighted loss, by name.
        fired: int64 (d_sae,), at how many rows each latent fired.
        statistics: What the activation observed; None where it looks at nothing.
        missed: What was encoded (rows, d_in), the target (rows, d_out), and the squared error
            (rows,), for a resampling; empty where none is due.
    """

    rows: int
    losses: Mapping[str, float]
    fired: Tensor
    statistics: Mapping[str, Tensor] | None
    missed: tuple[Tensor, ...]

    @classmethod
    @torch.no_grad()
    def of(cls, found: Objective, sae: SparseAutoencoder, *, keep_rows: bool) -> StepRecord:
        """Returns the record of an objective.

        Args:
            found: Whose gradients are there already.
            sae: In training.
            keep_rows: Whether a resampling is due.
        """
        z = found.z
        z = z.with_values(z.values.detach()) if isinstance(z, Code) else z.detach()
        statistics: dict[str, Tensor] | None = None
        missed: tuple[Tensor, ...] = ()
        if found.u is not None:
            side = Side(sae.decoder_rows().detach(), found.gradient)
            statistics = dict(sae.activation.observe(found.u, z, sae.own, side))
        if keep_rows:
            errors = (found.target - found.reconstruction).square().sum(1)
            missed = (found.inner, found.target, errors)
        return cls(
            rows=len(found.inner),
            losses={name: float(part.detach()) for name, part in found.parts.items()},
            fired=z.fired() if isinstance(z, Code) else (z != 0).sum(0),
            statistics=statistics,
            missed=missed,
        )

    @classmethod
    def joined(
        cls, records: Sequence[StepRecord], reductions: Mapping[str, Reduction]
    ) -> StepRecord:
        """Returns the record of all rows of several.

        Args:
            records: Of the pieces of a batch; at least one.
            reductions: How the activation's statistics are joined.
        """
        if len(records) == 1:
            return records[0]
        rows = sum(record.rows for record in records)
        losses: dict[str, float] = {}
        for record in records:
            for name, loss in record.losses.items():
                losses[name] = losses.get(name, 0.0) + loss * (record.rows / rows)
        return cls(
            rows=rows,
            losses=losses,
            fired=torch.stack([record.fired for record in records]).sum(0),
            statistics=_joined_statistics(records, reductions),
            missed=tuple(
                torch.cat(parts) for parts in zip(*(r.missed for r in records), strict=True)
            ),
        )


def _joined_statistics(
    records: Sequence[StepRecord], reductions: Mapping[str, Reduction]
) -> Mapping[str, Tensor] | None:
    joined: Mapping[str, Tensor] | None = None
    for record in records:
        if record.statistics is None:
            return None
        seen = record.statistics
        joined = seen if joined is None else join_statistics(joined, seen, reductions)
    return joined
