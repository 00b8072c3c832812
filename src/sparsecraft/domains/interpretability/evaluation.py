"""One call that says what a dictionary keeps of activations and of the model's behaviour.

Every figure has one definition, stated beside it in the table. The fraction of variance unexplained
is about the mean of the data (predicting the mean gives 1), codes may be signed, and inputs are raw
activations on both sides of every comparison: an autoencoder of this library has the scalar of its
training in its weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.fidelity import ReconstructionSums
from sparsecraft.domains.interpretability.behaviour import behaviour
from sparsecraft.domains.interpretability.latent_amplitudes import scale_warning
from sparsecraft.domains.interpretability.latent_statistics import LatentStatistics, alikeness
from sparsecraft.domains.interpretability.model_answers import Kind
from sparsecraft.domains.interpretability.sae_evaluation import SAEEvaluation
from sparsecraft.model.activation_store import ActivationBatch, ActivationStore
from sparsecraft.model.sae import SparseAutoencoder
from sparsecraft.model.sae.checks import check_targets
from sparsecraft.model.sae.origin import harvest_remarks, harvest_settings

Progress = Callable[[str, int, int], None]
FEW_TOKENS = 1_000_000


def evaluate(
    sae: SparseAutoencoder,
    store: ActivationStore | Tensor | None = None,
    model: nn.Module | None = None,
    texts: Iterable[str] | None = None,
    *,
    tokenizer: Any = None,
    behaves: Kind = "auto",
    contexts: int = 128,
    batch: int = 4096,
    seed: int = 0,
    progress: Progress | None = None,
) -> SAEEvaluation:
    """Returns what the autoencoder keeps of activations and, with a model, of its behaviour.

    Use activations that it was not trained on.

    Args:
        sae: The autoencoder; its mode is restored.
        store: Activations, or a tensor (rows, d_in); or None with texts.
        model: Whose activations they are.
        texts: What the model shall read, in place of a store, as it did in the training.
        tokenizer: Of the texts; by default the model's own.
        behaves: "next token", "similarity" (encoders and masked language models), or "auto": by
            what the model returns, and whether its predictions see the tokens behind them.
        contexts: For the behaviour, how many at most.
        batch: Activations encoded at once.
        seed: Of the latents that are drawn where not all directions are compared.
        progress: Told (stage, done, in all).

    Raises:
        InvalidValue: If there are no activations, they have another width, or this is a transcoder
            and they have no targets.
        NonFinite: If an activation is NaN or infinite.

    Example:
        >>> from sparsecraft import SparseAutoencoder
        >>> from sparsecraft.methods.codes.topk import TopK
        >>> sae = SparseAutoencoder(8, 32, TopK(k=4))
        >>> found = evaluate(sae, torch.randn(100, 8, generator=torch.Generator().manual_seed(0)))
        >>> found.tokens, found.l0 <= 4
        (100, True)

    Reference:
        Karvonen et al., 2025, arXiv 2503.09532, core metrics.
    """
    given = _store(sae, store, model, texts, tokenizer, progress)
    if given.d_in != sae.d_in:
        raise InvalidValue(
            f"the store has {given.d_in} entries in an activation, the autoencoder reads "
            f"{sae.d_in}: was it trained at another hook point?"
        )
    check_targets(sae, given.has_target)
    training = sae.training
    sae.eval()
    try:
        measured = _Pass(sae, given, batch, progress)
        found, notes = measured.run(), measured.notes()
        notes += [] if texts is None else harvest_remarks(sae.info)
        kept = None
        if model is not None and (reason := _no_behaviour(sae, given)):
            notes.append(reason)
        elif model is not None:
            kept = behaviour(
                model, given, sae, measured.mean(), kind=behaves, contexts=contexts,
                progress=progress,
            )  # fmt: skip
            notes += [] if kept.remark is None else [kept.remark]
    finally:
        sae.train(training)
    return SAEEvaluation(**found, **_directions(sae, seed), behaviour=kept, notes=tuple(notes))


class _Pass:
    """One pass over a store."""

    def __init__(
        self, sae: SparseAutoencoder, store: ActivationStore, batch: int, progress: Progress | None
    ) -> None:
        self.sae, self.store, self.batch, self.progress = sae, store, batch, progress
        self.sums = ReconstructionSums()
        self.latents = LatentStatistics(sae.d_sae)
        self.total = torch.zeros(store.d_in, dtype=torch.float64)
        self.lengths = self.reconstructed_lengths = 0.0
        self.warning: str | None = None

    @torch.no_grad()
    def run(self) -> dict[str, Any]:
        """Returns the figures of `SAEEvaluation` that come from activations alone."""
        for part in self.store.batches(self.batch):
            self._add(part)
            if self.progress is not None:
                self.progress("reconstructions", self.sums.rows, len(self.store))
        s, latents = self.sums, self.latents
        return {
            "tokens": s.rows, "latents": self.sae.d_sae, "fvu": s.fvu,
            "squared_error": s.squared_error, "relative_error": s.relative_error,
            "cosine": s.cosine, "shrinkage": s.shrinkage,
            "norm_ratio": self.reconstructed_lengths / self.lengths if self.lengths else math.nan,
            "l0": latents.l0, "l1": latents.l1, "alive": latents.alive,
            "denser_than_1_percent": latents.denser_than(0.01),
            "denser_than_10_percent": latents.denser_than(0.1),
            "fires_in_a_row": latents.in_a_row(), "densities": latents.histogram(),
        }  # fmt: skip

    def mean(self) -> Tensor:
        """Returns (d_in,), the mean activation."""
        return self.total / self.sums.rows

    def notes(self) -> list[str]:
        """Returns what the reader must know of the figures."""
        found = [] if self.warning is None else [self.warning]
        if math.isnan(self.sums.fvu):
            found.append("all activations are equal: they have no variance, so there is no FVU")
        elif self.sums.fvu > 1:
            found.append(
                "the reconstruction is worse than the mean of the data (FVU above 1): another "
                "hook point or model than it was trained on, or activations scaled otherwise?"
            )
        if self.sae.activation.needs_gradient:
            how = "with the store's gradients" if self.store.has_gradient else "without gradients"
            found.append(
                f"latents were selected {how}; in the model, where no gradient is to be had, they "
                "are always selected without"
            )
        if self.sums.rows < FEW_TOKENS and self.latents.alive < 1:
            found.append(
                f"{self.sums.rows:,} tokens are few to call a latent dead: rare ones may be alive"
            )
        return found

    def _add(self, part: ActivationBatch) -> None:
        sae = self.sae
        x = sae.check_input(part.x)
        target = x if part.target is None else part.target.to(x)
        inner, undo = sae.normalise_rows(x)
        gradient = part.gradient if sae.activation.needs_gradient else None
        code = sae.sparse_encode(x, gradient=gradient)
        reconstruction = undo(sae.reconstruct(code, inner))
        self.sums.add(target, reconstruction)
        place = self.store.place(part.index)
        self.latents.add(code, None if place is None else place[0])
        self.total += x.double().sum(0).cpu()
        self.lengths += float(target.norm(dim=1).double().sum())
        self.reconstructed_lengths += float(reconstruction.norm(dim=1).double().sum())
        if self.warning is None:
            self.warning = scale_warning(sae, x)


def _store(
    sae: SparseAutoencoder,
    store: ActivationStore | Tensor | None,
    model: nn.Module | None,
    texts: Iterable[str] | None,
    tokenizer: Any,
    progress: Progress | None,
) -> ActivationStore:
    """Returns the store that was given, or one of the tensor or the texts."""
    if store is not None and texts is not None:
        raise InvalidValue("both a store and texts were given: give the one to evaluate on")
    if isinstance(store, Tensor):
        sae.check_input(store)
        return ActivationStore.from_tensor(store)
    if store is not None:
        return store
    at = sae.info.get("hook")
    if texts is None or model is None or not at:
        raise InvalidValue(
            "no activations were given: give a store or a tensor; or texts and a model, for an "
            "autoencoder whose info says its hook"
        )
    return ActivationStore(
        model,
        at=str(at),
        to=sae.info.get("hook_out") if sae.transcoder else None,
        texts=texts,
        tokenizer=tokenizer,
        gradients=sae.activation.needs_gradient,
        progress=progress,
        **harvest_settings(sae.info),
    )


def _no_behaviour(sae: SparseAutoencoder, store: ActivationStore) -> str | None:
    """Returns why the model's behaviour cannot be measured, or None."""
    if sae.transcoder:
        return (
            "this is a transcoder, which reads one place and writes another, so its reconstruction "
            "was not put into the model; its FVU is that of what it reconstructs"
        )
    if store.tokens is None or store.at is None:
        return (
            "the store has no text, so the model was not run and its behaviour not measured: make "
            "the store from the model and a text"
        )
    return None


def _directions(sae: SparseAutoencoder, seed: int) -> dict[str, Any]:
    """Returns the figures of `SAEEvaluation` that come from the weights."""
    with torch.no_grad():
        decoder, encoder = sae.decoder_rows(), sae.encoder().T
        norms = decoder.norm(dim=1)
        return {
            "decoder": alikeness(decoder, seed=seed),
            "encoder": alikeness(encoder, seed=seed),
            "decoder_norms": (float(norms.min()), float(norms.max())),
        }
