"""The training of one autoencoder, batch by batch; `train_together` gives the batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsecraft.core import seeds
from sparsecraft.core.errors import InvalidValue, NonFinite
from sparsecraft.model.ranks import (
    fail_together,
    from_first_rank,
    mean_over_ranks_,
    reduce_over_ranks_,
)
from sparsecraft.model.sae import scaling as scalings
from sparsecraft.model.sae.bias import ROWS, geometric_median
from sparsecraft.model.sae.checks import check_micro_batch
from sparsecraft.model.sae.counters import FiringCounter
from sparsecraft.model.sae.objective import Objective, objective
from sparsecraft.model.sae.optimiser import CLIP_EPS
from sparsecraft.model.sae.projected_adam import ProjectedAdam
from sparsecraft.model.sae.resampling import resample
from sparsecraft.model.sae.row_scaling import RowScaling
from sparsecraft.model.sae.scaling import Scaling
from sparsecraft.model.sae.step_record import StepRecord

if TYPE_CHECKING:
    from sparsecraft.model.activation_store import ActivationBatch, ActivationStore
    from sparsecraft.model.sae.autoencoder import SparseAutoencoder
    from sparsecraft.model.sae.training_settings import SAETraining

RECORDS = 200


class Trainer:
    """One autoencoder in training, in the units of the training.

    Args:
        sae: Changed in place; `fold` brings it back to raw activations.
        training: Settings.

    Raises:
        InvalidValue: If its weights are of a half precision, or a batch cannot be worked on in
            pieces.
    """

    def __init__(self, sae: SparseAutoencoder, training: SAETraining) -> None:
        if sae.W_dec.dtype not in (torch.float32, torch.float64):
            raise InvalidValue(
                f"weights of type {sae.W_dec.dtype} cannot be trained: call .float() first; for "
                "speed give SAETraining(precision='bfloat16')"
            )
        check_micro_batch(sae.activation, training)
        self.sae, self.training = sae, training
        self.auxiliary = training.auxiliary_of(sae.activation)
        self.optimizer = ProjectedAdam(
            sae,
            unit=sae.tied or training.unit_rows(sae.transcoder),
            betas=training.betas,
            epsilon=training.epsilon,
        )
        momentum = None if self.auxiliary is None else self.auxiliary.density_momentum
        self.counter = FiringCounter(sae.d_sae, sae.W_dec.device, density_momentum=momentum)
        self.scaling = Scaling()
        self.steps_done = 0
        self.history: list[dict[str, float]] = []
        self._sums: dict[str, float] = {}
        self._summed = 0

    def begin(self, store: ActivationStore) -> None:
        """Sets the scale and the first bias from activations, before the first step."""
        self.scaling = self._scaling(store)
        if self.sae.trained:
            scalings.fold(self.sae, self.scaling.inverse)
        elif self.training.bias != "keep":
            self._first_bias(store)
        if self.optimizer.unit:
            scalings.make_rows_unit(self.sae)

    @torch.enable_grad()
    def step(self, batch: ActivationBatch) -> None:
        """Takes one step of the optimiser.

        Raises:
            NonFinite: If activations or gradients are NaN or infinite; the weights are then those
                of the step before.
        """
        training, number = self.training, self.steps_done
        self.sae.train()
        found = fail_together(lambda: self._work(batch, number), self.sae.W_dec.device)
        rate = training.rate(number, self.sae.d_sae)
        self.optimizer.step(rate, self._clip(found, number))
        active = float(found.fired.sum()) / found.rows  # of this rank, as the losses are
        self.counter.add_counts(found.fired, found.rows)
        self._update(found.statistics, (number + 1) / training.steps)
        self._resample(found.missed, number + 1)
        self.steps_done += 1
        self._record({**found.losses, "active": active}, rate)

    def finish(self) -> None:
        """Folds the scale into the weights, which then read raw activations."""
        scalings.fold(self.sae, self.scaling)
        self.sae.trained = self.sae.trained or self.steps_done > 0
        self.sae.zero_grad(set_to_none=True)
        self.sae.eval()

    def dead(self) -> Tensor:
        """Returns bool (d_sae,): the latents that are dead now."""
        return self.counter.dead(self.training.silence())

    def state_dict(self) -> dict[str, Any]:
        """Returns everything the training needs to go on."""
        return {
            "sae": self.sae.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "counter": self.counter.state_dict(),
            "scale": [self.scaling.inputs, self.scaling.targets],
            "steps_done": self.steps_done,
            "history": self.history,
            "sums": [self._summed, self._sums],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up a state."""
        self.sae.load_state_dict(state["sae"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.counter.load_state_dict(state["counter"])
        self.scaling = Scaling(*state["scale"])
        self.steps_done = state["steps_done"]
        self.history = list(state["history"])
        self._summed, self._sums = state["sums"][0], dict(state["sums"][1])

    def _objective(self, batch: ActivationBatch, number: int) -> Objective:
        sae = self.sae
        x = sae.check_input(batch.x.to(sae.W_dec.device))
        target = None if batch.target is None else batch.target.to(x)
        gradient = None if batch.gradient is None else batch.gradient.to(x)
        return objective(
            sae,
            x * self.scaling.inputs,
            target=None if target is None else target * self.scaling.targets,
            gradient=None if gradient is None else gradient / self.scaling.targets,
            dead=self.dead(),
            density=self.counter.density,
            warmth=self.training.warmth(number),
            auxiliary=self.auxiliary,
            prefix_loss=self.training.prefix_loss,
            precision=self.training.precision,
        )

    def _work(self, batch: ActivationBatch, number: int) -> StepRecord:
        """Returns what is kept of this rank's rows, and leaves their gradients."""
        self.optimizer.clear()
        resample = self.training.resample
        due = resample is not None and resample.due(number + 1, self.training.steps)
        pieces = batch.split(self.training.micro_batch or len(batch))
        records = [self._piece(piece, len(piece) / len(batch), number, due) for piece in pieces]
        return StepRecord.joined(records, self.sae.activation.reductions)

    def _piece(self, piece: ActivationBatch, share: float, number: int, due: bool) -> StepRecord:
        """Adds the gradients of a piece, of which nothing large is left when it returns."""
        found = self._objective(piece, number)
        (found.total * share).backward()
        return StepRecord.of(found, self.sae, keep_rows=due)

    def _clip(self, found: StepRecord, number: int) -> float:
        """Averages gradients over ranks; returns what a clip of their norm multiplies them with.

        Raises:
            NonFinite: If the norm is NaN or infinite, on every rank alike.
        """
        gradients = self.optimizer.gradients()
        mean_over_ranks_(gradients)
        norm = torch.nn.utils.get_total_norm(gradients)
        if not bool(torch.isfinite(norm)):
            losses = ", ".join(f"{name} {loss:g}" for name, loss in found.losses.items())
            raise NonFinite(
                f"the training diverged in step {number + 1} of {self.training.steps}: the "
                f"gradients' norm is {float(norm)} ({losses}). The last checkpoint is kept. Give a "
                "smaller learning_rate, or a longer warm_up."
            )
        clip = self.training.clip
        return 1.0 if clip is None else min(1.0, clip / (float(norm) + CLIP_EPS))

    @torch.no_grad()
    def _update(self, statistics: Mapping[str, Tensor] | None, progress: float) -> None:
        """Lets the activation change its state, from what all ranks saw."""
        if statistics is None:
            return  # it observes nothing
        activation = self.sae.activation
        reduce_over_ranks_(statistics, activation.reductions)
        activation.update(self.sae.own, statistics, progress)

    def _resample(self, missed: tuple[Tensor, ...], number: int) -> None:
        settings = self.training.resample
        if settings is None or not missed:
            return
        # Rows of one rank: from its own each would make other weights.
        inner, target, errors = from_first_rank(missed)
        stream = seeds.generator(self.training.seed, "resampling", number)
        latents = resample(
            self.sae, self.dead(), inner, target, errors, settings.encoder_norm, stream
        )
        self.optimizer.forget(latents)
        self.counter.reset(latents)

    def _record(self, seen: Mapping[str, float], rate: float) -> None:
        for name, value in seen.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._summed += 1
        every = max(1, self.training.steps // RECORDS)
        if self.steps_done % every and self.steps_done != self.training.steps:
            return
        means = {name: value / self._summed for name, value in self._sums.items()}
        dead = float(self.dead().double().mean())
        record = {"step": float(self.steps_done), "learning_rate": rate, **means, "dead": dead}
        self.history.append(record)
        self._sums, self._summed = {}, 0

    def _scaling(self, store: ActivationStore) -> Scaling:
        kept = self._kept_norm() if self.sae.trained and self.optimizer.unit else None
        if self.sae.row_norm != "none":
            return Scaling()
        if kept is not None and self.sae.tied:
            return Scaling(kept, kept)
        inputs = store.scale() if self.training.scale_inputs else 1.0
        if kept is not None:
            return Scaling(inputs if self._two_scales(store) else 1 / kept, 1 / kept)
        if not self.training.scale_inputs:
            return Scaling()
        target = store.sample(min(len(store), ROWS)).target
        if target is None or not self._two_scales(store):
            return Scaling(inputs, inputs)
        norm = float(target.norm(dim=1).double().mean())
        if norm == 0:
            raise InvalidValue("all targets looked at are zero: there is nothing to reconstruct")
        return Scaling(inputs, float(self.sae.d_out**0.5 / norm))

    def _two_scales(self, store: ActivationStore) -> bool:
        """Returns whether b_dec is in the units of a target alone."""
        return store.sample(1).target is not None and not self.sae.subtract_bias

    @torch.no_grad()
    def _kept_norm(self) -> float:
        """Returns the norm that all rows of a trained dictionary have, by which it goes on.

        Raises:
            InvalidValue: If they differ, so that norms of one would change what it computes.
        """
        norms = self.sae.W_dec.norm(dim=1)
        least, most = float(norms.min()), float(norms.max())
        wanted = (least + most) / 2 if self.sae.row_norm == "none" else 1.0
        if max(most - wanted, wanted - least) > 1e-3 * wanted:
            raise InvalidValue(
                f"rows of the trained decoder have norms from {least:g} to {most:g}; to bring all "
                "to one would change what the autoencoder computes. Give "
                "SAETraining(decoder='free') to go on with it."
            )
        return wanted

    @torch.no_grad()
    def _first_bias(self, store: ActivationStore) -> None:
        """Sets b_dec to the centre of a sample, as the loss sees it."""
        batch = store.sample(min(len(store), ROWS), self.training.seed)
        x = batch.x * self.scaling.inputs
        scaling = RowScaling.of(x, self.sae.row_norm)
        rows = x if batch.target is None else batch.target * self.scaling.targets
        rows = scaling.apply(rows)
        centre = geometric_median(rows) if self.training.bias == "median" else rows.mean(0)
        self.sae.b_dec.copy_(centre)
