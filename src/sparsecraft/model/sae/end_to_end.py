"""End-to-end fine-tuning: an autoencoder learns from what the model does with its reconstructions.

A dictionary that reconstructs well may still leave out what the model uses. Braun et al. (2024) put
it into the model, whose weights are frozen, and minimise the divergence of the predictions with it
from those without; Karvonen (2025) finds that a short fine-tuning of an ordinary dictionary, with
the squared error beside the divergence, does nearly as well as such a training from the beginning.

The squared error counts here as the fraction of variance unexplained of the batch. Braun et al. add
an L1 penalty; here nothing is added, so a code keeps its sparsity where it is held by k or by a
threshold that stands, and the report says L0 before and after. Codes are made as at inference.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecraft.core import seeds
from sparsecraft.core.errors import InvalidValue, NonFinite
from sparsecraft.model.ranks import world_size
from sparsecraft.model.sae.checks import check_targets
from sparsecraft.model.sae.end_to_end_report import EndToEndReport, Spliced
from sparsecraft.model.sae.end_to_end_settings import EndToEndTraining
from sparsecraft.model.sae.fitting import Progress, measure
from sparsecraft.model.sae.next_token import (
    Contexts,
    check_causal,
    frozen,
    log_predictions,
    replaced,
)
from sparsecraft.model.sae.optimiser import CLIP_EPS
from sparsecraft.model.sae.trainer import Trainer

if TYPE_CHECKING:
    from sparsecraft.model.activation_store import ActivationStore
    from sparsecraft.model.sae.autoencoder import SparseAutoencoder

_MEASURED = 65_536


def fine_tune(
    sae: SparseAutoencoder,
    model: nn.Module,
    store: ActivationStore,
    training: EndToEndTraining | None = None,
    *,
    progress: Progress | None = None,
) -> EndToEndReport:
    """Trains an autoencoder in place, inside the model, and returns how it went.

    Only tokens whose activations the store holds are replaced and counted, so special tokens and
    padding are left alone. The model is as it was afterwards. Whatever stops the training, the
    autoencoder is left as of the last step, reading raw activations.

    Args:
        sae: Trained already, as a rule.
        model: A causal language model, the one of the store.
        store: Harvested from a text: its tokens, and its places (`at`, and `to` of a transcoder).
        training: Settings; by default `EndToEndTraining()`.
        progress: Told (stage, steps done, steps).

    Raises:
        InvalidValue: If the model is not causal, the store has no text, or the autoencoder does
            not fit the store.
        NonFinite: If a gradient is NaN or infinite; the weights are then those of the step before.

    Reference:
        Braun et al., 2024, arXiv 2405.12241; Karvonen, 2025, arXiv 2503.17272.
    """
    settings = EndToEndTraining() if training is None else training
    _check(sae, store)
    parts = store.split(settings.held_out, settings.seed) if settings.held_out else (store, store)
    texts, measured = (Contexts.of(part) for part in parts)
    with frozen(model):
        check_causal(model, texts.take(torch.arange(1), _device(model)))
        inside = _Inside(sae, model, store, settings)
        before = inside.measured(parts[1], measured)
        history, tokens = inside.run(texts, progress)
        after = inside.measured(parts[1], measured)
    on = "held-out contexts" if settings.held_out else "training contexts"
    report = EndToEndReport(settings.steps, tokens, before, after, on, len(measured), history)
    kept = {key: value for key, value in report.to_json().items() if key != "history"}
    sae.info["end_to_end"] = {**dataclasses.asdict(settings), **kept}
    return report


class _Inside:
    """An autoencoder in its model."""

    def __init__(
        self,
        sae: SparseAutoencoder,
        model: nn.Module,
        store: ActivationStore,
        settings: EndToEndTraining,
    ) -> None:
        self.sae, self.model, self.store, self.settings = sae, model, store, settings
        self.at, self.to = str(store.at), store.info.get("hook_out")
        self.trainer = Trainer(sae, settings.settings(sae.d_sae))

    def run(self, texts: Contexts, progress: Progress | None) -> tuple[list[dict[str, float]], int]:
        """Takes all steps; returns their losses, and how many tokens were replaced."""
        history, tokens = [], 0
        self.trainer.begin(self.store)
        try:
            for number, index in enumerate(self._order(len(texts))):
                batch = texts.take(index, _device(self.model))
                history.append(self._step(batch, number))
                tokens += int(batch.kept.sum())
                if progress is not None:
                    stage = ", ".join(f"{k} {v:.4g}" for k, v in history[-1].items())
                    progress(stage, number + 1, self.settings.steps)
        finally:
            self.trainer.finish()
        return history, tokens

    @torch.no_grad()
    def measured(self, part: ActivationStore, texts: Contexts) -> Spliced:
        """Returns what the autoencoder, reading raw activations, leaves of the predictions."""
        sums, counted = torch.zeros(4, dtype=torch.float64), 0
        self.sae.eval()
        for index in torch.arange(len(texts)).split(self.settings.batch):
            batch = texts.take(index, _device(self.model))
            clean = log_predictions(self.model, batch)
            with self.sae.spliced(self.model, at=self.at, to=self.to, mask=batch.kept):
                found = log_predictions(self.model, batch)
            with replaced(self.model, self.at, self.to, batch.kept, self._zeros):
                ablated = log_predictions(self.model, batch)
            losses = [
                F.nll_loss(each, batch.following, reduction="sum")
                for each in (found, clean, ablated)
            ]
            sums += torch.stack([_divergence(found, clean).sum(), *losses]).double().cpu()
            counted += len(clean)
        rows = part.sample(min(len(part), _MEASURED), 0)
        fvu, l0 = measure(self.sae, dataclasses.replace(rows, gradient=None))
        divergence, loss, clean_loss, zero = (sums / max(1, counted)).tolist()
        return Spliced(divergence, loss, clean_loss, zero, fvu, l0)

    @torch.enable_grad()
    def _step(self, batch: Contexts, number: int) -> dict[str, float]:
        parts = self._losses(batch)
        optimizer, settings = self.trainer.optimizer, self.trainer.training
        optimizer.clear()
        torch.stack(list(parts.values())).sum().backward()
        norm = float(torch.nn.utils.get_total_norm(optimizer.gradients()))
        if not math.isfinite(norm):
            raise NonFinite(
                f"the training diverged in step {number + 1} of {settings.steps}: the gradients' "
                f"norm is {norm}. Give a smaller learning_rate."
            )
        clip = 1.0 if settings.clip is None else min(1.0, settings.clip / (norm + CLIP_EPS))
        optimizer.step(settings.rate(number, self.sae.d_sae), clip)
        self.trainer.steps_done += 1
        return {name: part.item() for name, part in parts.items()}

    def _losses(self, batch: Contexts) -> dict[str, Tensor]:
        """Returns what a step minimises, by name, weighted."""
        self.sae.eval()  # thresholds stand in for selections over a batch, as at inference
        seen: list[Tensor] = []
        with torch.no_grad():
            clean = log_predictions(self.model, batch) if self.settings.loss == "kl" else None

        def write(x: Tensor) -> Tensor:
            made = self._reconstructed(x)
            seen.extend([x, made])
            return made

        with replaced(self.model, self.at, self.to, batch.kept, write):
            found = log_predictions(self.model, batch)
        parts: dict[str, Tensor] = {
            self.settings.loss: F.nll_loss(found, batch.following)
            if clean is None
            else _divergence(found, clean).mean()
        }
        if self.settings.reconstruction:
            target = seen[0] if self.to is None else self._target(batch)
            error = (seen[1] - target.to(seen[1])).square().sum()
            variance = (target - target.mean(0)).square().sum().to(error)
            parts["reconstruction"] = self.settings.reconstruction * error / variance
        return parts

    def _reconstructed(self, x: Tensor) -> Tensor:
        """Returns in raw units what the autoencoder, in those of the training, makes of rows."""
        scaling = self.trainer.scaling
        made: Tensor = self.sae(x.to(self.sae.W_dec) * scaling.inputs)
        return made / scaling.targets

    @torch.no_grad()
    def _target(self, batch: Contexts) -> Tensor:
        """Returns what a transcoder shall write, (kept, d_out)."""
        seen: list[Tensor] = []

        def note(y: Tensor) -> Tensor:
            seen.append(y)
            return y

        with replaced(self.model, str(self.to), None, batch.kept, note):
            log_predictions(self.model, batch)
        return seen[0]

    def _zeros(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), self.sae.d_out)

    def _order(self, contexts: int) -> Iterator[Tensor]:
        """Yields the contexts of each step, all of them once before one comes again."""
        size, steps = min(self.settings.batch, contexts), self.settings.steps
        epochs = -(-steps * size // contexts)
        drawn = [
            torch.randperm(contexts, generator=seeds.generator(self.settings.seed, "order", epoch))
            for epoch in range(epochs)
        ]
        yield from torch.cat(drawn)[: steps * size].split(size)


def _divergence(found: Tensor, clean: Tensor) -> Tensor:
    """Returns KL(clean || found) of log probabilities (counted, vocabulary), (counted,)."""
    return F.kl_div(found, clean, log_target=True, reduction="none").sum(-1)


def _device(model: nn.Module) -> torch.device:
    return next((weight.device for weight in model.parameters()), torch.device("cpu"))


def _check(sae: SparseAutoencoder, store: ActivationStore) -> None:
    if world_size() > 1:
        raise InvalidValue(
            f"end-to-end training runs in one process, and there are {world_size()}: call it in one"
        )
    if sae.d_in != store.d_in or sae.d_out != store.d_out:
        raise InvalidValue(
            f"this autoencoder reads {sae.d_in} entries and reconstructs {sae.d_out}; the store "
            f"has {store.d_in} and {store.d_out}"
        )
    check_targets(sae, store.has_target)
