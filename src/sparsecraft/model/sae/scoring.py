"""How much of what it shall reconstruct an autoencoder explains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.fidelity import ReconstructionSums
from sparsecraft.model.activation_store import ActivationStore
from sparsecraft.model.sae.checks import check_rows, check_targets
from sparsecraft.model.sae.estimator import ROWS_AT_ONCE

if TYPE_CHECKING:
    from sparsecraft.model.sae.autoencoder import SparseAutoencoder

Given = Tensor | np.ndarray[Any, Any]


@torch.no_grad()
def explained_variance(
    sae: SparseAutoencoder, data: ActivationStore | Given, target: Given | None = None
) -> float:
    """Returns 1 - FVU of the reconstructions; see `SparseAutoencoder.score`.

    Args:
        sae: In evaluation mode.
        data: A store, or rows (..., d_in).
        target: (..., d_out), for rows of a transcoder.
    """
    pairs = (
        _of_store(sae, data, target)
        if isinstance(data, ActivationStore)
        else _of_rows(sae, data, target)
    )
    sums = ReconstructionSums()
    for x, wanted in pairs:
        sums.add(wanted.to(sae.W_dec), sae(x))
    return sums.explained_variance


def _of_store(
    sae: SparseAutoencoder, store: ActivationStore, target: Given | None
) -> Iterator[tuple[Tensor, Tensor]]:
    if target is not None:
        raise InvalidValue("a store has its own targets: leave target out, or give rows")
    check_targets(sae, store.has_target)
    for part in store.batches(ROWS_AT_ONCE):
        yield part.x, part.x if part.target is None else part.target


def _of_rows(
    sae: SparseAutoencoder, data: Given, target: Given | None
) -> Iterator[tuple[Tensor, Tensor]]:
    check_targets(sae, target is not None)
    x = torch.as_tensor(data)
    wanted = x if target is None else torch.as_tensor(target)
    check_rows(x, sae.d_in)
    check_rows(wanted, sae.d_out)
    if wanted.shape[:-1] != x.shape[:-1]:
        raise InvalidValue(
            f"target has the shape {tuple(wanted.shape)} and the rows {tuple(x.shape)}: give one "
            "target for each row"
        )
    flat = x.reshape(-1, sae.d_in), wanted.reshape(-1, sae.d_out)
    yield from zip(*(rows.split(ROWS_AT_ONCE) for rows in flat), strict=True)
