"""An autoencoder as scikit-learn knows estimators, and as transformers knows models: the verbs.

fit, transform, inverse_transform, score; save_pretrained, from_pretrained; spliced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from sparsecraft.model.sae.bench_face import BenchFace

if TYPE_CHECKING:
    from sparsecraft.model.activation_store import ActivationStore
    from sparsecraft.model.sae.autoencoder import SparseAutoencoder
    from sparsecraft.model.sae.training_settings import SAETraining

Rows = TypeVar("Rows", Tensor, np.ndarray[Any, Any])
ROWS_AT_ONCE = 4096


class Estimator(BenchFace):
    """The part of `SparseAutoencoder` that is used from outside: trained, applied, saved."""

    def fit(
        self,
        data: ActivationStore | Tensor | np.ndarray[Any, Any],
        training: SAETraining | None = None,
        *,
        directory: str | Path | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Self:
        """Returns itself, trained; `report` then says how it went.

        One that is trained already goes on from its weights. Whatever stops a training, the
        autoencoder is left as of the last step, reading raw activations. Ctrl-C waits until the
        step is done, and until a checkpoint of it is written; a second one does not.

        Args:
            data: A store, or activations (rows, d_in).
            training: Settings; by default `SAETraining()`.
            directory: Where checkpoints are kept. The same call goes on exactly where a stopped
                one was. The autoencoder as of the last checkpoint stands in `sae` beside it.
            progress: Told (stage, steps done, steps).

        Raises:
            InvalidValue: If the data do not fit the autoencoder or the settings, or the activation
                has no name under which a checkpoint could be read.
            MissingStatistic: If the activation needs gradients that the store lacks.
            NonFinite: For NaN or infinite activations, or a training that diverges.
            CheckpointError: If the directory has a training with other settings.

        Example:
            >>> from sparsecraft.methods.codes.topk import TopK
            >>> from sparsecraft.model.sae import SAETraining, SparseAutoencoder
            >>> sae = SparseAutoencoder(8, 16, TopK(k=2))
            >>> x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
            >>> sae.fit(x, SAETraining(steps=2, batch=32)).transform(x).shape
            torch.Size([64, 16])
        """
        from sparsecraft.model.sae.fitting import train_together
        from sparsecraft.model.sae.training_settings import SAETraining

        sae = cast("SparseAutoencoder", self)
        train_together([sae], data, training or SAETraining(), directory, progress)
        return self

    @torch.no_grad()
    def transform(self, x: Rows) -> Rows:
        """Returns the codes (..., d_sae) of rows that do not know of each other.

        Args:
            x: (..., d_in), a tensor or a NumPy array, of which the result is one too.
        """
        sae = cast("SparseAutoencoder", self)
        return self._by_part(x, sae.encode, sae.d_sae)

    @torch.no_grad()
    def inverse_transform(self, z: Rows) -> Rows:
        """Returns what codes (..., d_sae) reconstruct, (..., d_out).

        Raises:
            InvalidValue: If rows are normalised, for a code does not hold their sizes, or if the
                decoder reads the input too (skip).
        """
        from sparsecraft.core.errors import InvalidValue

        sae = cast("SparseAutoencoder", self)
        if sae.row_norm != "none" or sae.W_skip is not None:
            what = "row_norm" if sae.row_norm != "none" else "skip"
            raise InvalidValue(
                f"with {what} a reconstruction needs the row itself, not only its code: call the "
                "autoencoder on the rows"
            )
        return self._by_part(z, sae.decode, sae.d_out)

    def fit_transform(
        self, data: Rows, training: SAETraining | None = None, **options: Any
    ) -> Rows:
        """Returns the codes of the rows that the autoencoder was just trained on."""
        return self.fit(data, training, **options).transform(data)

    @torch.no_grad()
    def score(
        self,
        data: ActivationStore | Tensor | np.ndarray[Any, Any],
        target: Tensor | np.ndarray[Any, Any] | None = None,
    ) -> float:
        """Returns the explained variance 1 - FVU of what is reconstructed; its mean scores 0.

        Rows are encoded by themselves, without gradients.

        Args:
            data: Rows (..., d_in); or a store, with targets if this is a transcoder.
            target: (..., d_out), for a transcoder whose rows are no store.

        Raises:
            InvalidValue: If targets are missing or too much, or have another shape.
        """
        from sparsecraft.model.sae.scoring import explained_variance

        with evaluating(cast("SparseAutoencoder", self)):
            return explained_variance(cast("SparseAutoencoder", self), data, target)

    def freeze_thresholds(
        self,
        data: ActivationStore | Tensor | np.ndarray[Any, Any],
        rows: int = 100_000,
        batch: int = ROWS_AT_ONCE,
        seed: int = 0,
    ) -> Self:
        """Returns itself, with thresholds for rows that come alone, set on these rows.

        With them these rows keep k entries on average, as a selection over all of them would: k
        exactly, unless fewer are positive (with budgets, of a latent) or several equal the last.

        Args:
            data: A store, or raw activations (rows, d_in).
            rows: At most so many are looked at; thresholds of few rows are rough.
            batch: Rows that are encoded at once.
            seed: Of the rows taken.

        Raises:
            InvalidValue: If the activation has no such thresholds.
            MissingStatistic: If it needs gradients that the store lacks.
        """
        from sparsecraft.model.sae.fitting import as_store
        from sparsecraft.model.sae.thresholds import freeze_thresholds

        freeze_thresholds(cast("SparseAutoencoder", self), as_store(data), rows, batch, seed)
        return self

    def save_pretrained(
        self, path: str | Path, *, format: str = "sparsecraft", overwrite: bool = False
    ) -> tuple[str, ...]:
        """Writes this autoencoder into a directory; see `model.sae.files.save_pretrained`.

        Returns:
            What the format could not say, in sentences for the user; nothing is lost in ours.
        """
        from sparsecraft.model.sae.files import save_pretrained

        sae = cast("SparseAutoencoder", self)
        return save_pretrained(sae, path, format=format, overwrite=overwrite)

    @staticmethod
    def from_pretrained(
        source: str | Path, subfolder: str = "", **options: Any
    ) -> SparseAutoencoder:
        """Returns a saved autoencoder, of any format that we read; see `model.sae.files`."""
        from sparsecraft.model.sae.files import from_pretrained

        return from_pretrained(source, subfolder, **options)

    def spliced(
        self, model: nn.Module, *, at: str | None = None, **options: Any
    ) -> AbstractContextManager[nn.Module]:
        """Gives a block in which the model runs on reconstructions, with latents changed.

        Args:
            model: The model; it is as it was after the block.
            at: A hook point; by default the one of the training.
            options: `edit`, `set`, `ablate`, `keep_error`, ...: see `model.sae.splice.spliced`.
        """
        from sparsecraft.model.sae.splice import spliced

        return spliced(cast("SparseAutoencoder", self), model, at, **options)

    def _by_part(self, x: Rows, function: Callable[[Tensor], Tensor], width: int) -> Rows:
        """Returns the function of rows, some thousand at a time, in the type of x."""
        sae = cast("SparseAutoencoder", self)
        rows = torch.as_tensor(x)
        flat = rows.reshape(-1, rows.shape[-1]) if rows.dim() else rows
        device = sae.W_dec.device
        with evaluating(sae):
            parts = [function(part.to(device)) for part in flat.split(ROWS_AT_ONCE)]
        out = torch.cat(parts).reshape(*rows.shape[:-1], width)
        return out.cpu().numpy() if isinstance(x, np.ndarray) else out


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Gives a block in which a module is in evaluation mode."""
    mode = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(mode)
