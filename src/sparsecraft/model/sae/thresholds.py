"""Thresholds that stand in, for rows that come alone, for selections over a batch or a feature."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue, MissingStatistic
from sparsecraft.core.kinds import Selecting, Side
from sparsecraft.model.sae.row_scaling import RowScaling

if TYPE_CHECKING:
    from sparsecraft.model.activation_store import ActivationStore
    from sparsecraft.model.sae.autoencoder import SparseAutoencoder


@torch.no_grad()
def freeze_thresholds(
    sae: SparseAutoencoder, store: ActivationStore, rows: int, batch: int, seed: int
) -> None:
    """Sets the thresholds, in place; see `SparseAutoencoder.freeze_thresholds`."""
    if rows < 1 or batch < 1:
        raise InvalidValue(f"rows={rows}, batch={batch} are not allowed: give at least 1")
    activation = cast(Selecting, sae.activation)
    state = sae.own.state.get("threshold")
    if not isinstance(activation, Selecting) or state is None:
        raise InvalidValue(
            f"{type(activation).__name__} decides for each row alone and has no thresholds to "
            "freeze: use it as it is"
        )
    if activation.needs_gradient and not store.has_gradient:
        raise MissingStatistic(
            f"{type(activation).__name__} selects by the gradient of the model's loss, and these "
            "activations come without: harvest them with gradients=True"
        )
    count = min(rows, len(store))
    threshold = activation.calibrate(_scores(sae, store, count, batch, seed), count, sae.own)
    if threshold is not None:
        state.copy_(threshold.to(state))


def _scores(
    sae: SparseAutoencoder, store: ActivationStore, count: int, batch: int, seed: int
) -> Iterator[Tensor]:
    """Yields what is ranked in different rows of a store, (at most `batch`, d_sae)."""
    activation, side = cast(Selecting, sae.activation), sae.decoder_rows().detach()
    for index in store.sample(count, seed).index.split(batch):
        found = store.rows(index)
        x = sae.check_input(found.x.to(side.device))
        scaling = RowScaling.of(x, sae.row_norm)
        slope = None if found.gradient is None else scaling.gradient(found.gradient.to(x))
        u = sae.pre_activations(scaling.apply(x))
        yield activation.scores(u, Side(side, slope))
