"""Dictionaries of one layer of a small causal model, and what they do to the model's loss.

Two models: a byte decoder that a seed draws and trains on Python source, and the pretrained
stories260k, whose text is its own. Activations come with the gradient of the summed loss of the
next tokens. A dictionary is scored on windows that it was not trained on, with its reconstruction
in the place of the activation, once selected plainly and once with the gradient, which looks at the
very labels that are predicted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecraft.core.fidelity import ReconstructionSums
from sparsecraft.core.seeds import generator
from sparsecraft.lab.claims import source_bytes
from sparsecraft.lab.tasks.stories import Stories260k
from sparsecraft.methods.codes.gradient_topk import GradientTopK
from sparsecraft.methods.codes.topk import TopK
from sparsecraft.model.activation_store import ActivationStore
from sparsecraft.model.activation_store.recorder import next_token_loss
from sparsecraft.model.hook_points import hook_point
from sparsecraft.model.sae import SAETraining, SparseAutoencoder

LAYERS, WIDTH, CONTEXT = 2, 96, 128
WINDOWS_AT_ONCE = 32


@dataclass(frozen=True)
class Subject:
    """A model, the place that is looked at, and its windows of token ids (windows, tokens).

    Args:
        model: Causal; it gives logits, or an output that has them.
        at: The hook point.
        train: For the dictionaries.
        test: To score on.
    """

    model: nn.Module
    at: str
    train: Tensor
    test: Tensor


def source_subject(seed: int, settings: Mapping[str, Any]) -> Subject:
    """Returns a byte decoder trained for this seed; the residual stream behind its first block."""
    data = source_bytes.load_source(seed)
    model = source_bytes.byte_model(LAYERS, WIDTH, seed, CONTEXT)
    source_bytes.train(
        model, data.train, seed=seed, steps=settings["model_steps"], rate=settings["model_rate"]
    )
    train, test = (source_bytes.cut(part, CONTEXT) for part in (data.train, data.test))
    chosen = torch.randperm(len(train), generator=generator(seed, "dictionary windows"))
    return Subject(
        model, "blocks.0", train[chosen[: settings["windows"]]], test[: settings["test_windows"]]
    )


def stories_subject(seed: int, settings: Mapping[str, Any]) -> Subject:
    """Returns stories260k at its middle layer; a seed draws the windows for the dictionaries."""
    task = Stories260k()
    train = task.windows["training"]
    chosen = torch.randperm(len(train), generator=generator(seed, "dictionary windows"))
    count = settings["windows"] * CONTEXT // task.context
    model = task.load_model().eval()
    return Subject(model, "model.layers.2", train[chosen[:count]], task.windows["test"][:96])


SUBJECTS = {"source bytes": source_subject, "stories260k": stories_subject}


def method_of(arm: Mapping[str, Any], k: int) -> TopK | GradientTopK:
    """Returns the activation of an arm: its options, TopK if there are none."""
    options = {name: value for name, value in arm.items() if name != "shuffle"}
    return GradientTopK(k=k, **options) if options else TopK(k=k)


@dataclass(frozen=True)
class Harvest:
    """Activations with the gradients of the model's loss.

    Args:
        x: (rows, d_in), all tokens of all windows.
        gradient: (rows, d_in).
    """

    x: Tensor
    gradient: Tensor

    @classmethod
    def of(cls, subject: Subject, windows: Tensor) -> Harvest:
        """Returns what the model has at its place on some windows."""
        store = ActivationStore(
            subject.model,
            at=subject.at,
            tokens=windows,
            context=windows.shape[1],
            gradients=True,
            loss=next_token_loss,
            skip_special=False,
        )
        batch = store.rows(torch.arange(len(store)))
        return cls(batch.x, cast(Tensor, batch.gradient))


def trained(
    arm: Mapping[str, Any], harvest: Harvest, seed: int, settings: Mapping[str, Any]
) -> SparseAutoencoder:
    """Returns the dictionary of an arm; its control has the gradients of other tokens."""
    gradient = harvest.gradient
    if arm.get("shuffle"):
        order = torch.randperm(len(gradient), generator=generator(seed, "shuffled gradients"))
        gradient = gradient[order]
    width = harvest.x.shape[1]
    sae = SparseAutoencoder(
        width, settings["expansion"] * width, method_of(arm, settings["k"]), seed=seed
    )
    training = SAETraining(
        steps=settings["steps"],
        batch=settings["batch"],
        learning_rate=settings["rate"],
        seed=seed,
        held_out=0.0,
    )
    return sae.fit(ActivationStore.from_tensor(harvest.x, gradient), training)


@torch.no_grad()
def scores(
    subject: Subject, sae: SparseAutoencoder, test: Harvest, seed: int, settings: Mapping[str, Any]
) -> dict[str, float]:
    """Returns what a dictionary does to the model, and of what it is made."""
    found, clean = {}, clean_logits(subject)
    # TopK has one selection, which counts as both.
    chosen_by = test.gradient if sae.activation.needs_gradient else None
    selections = {"plain": None, "with gradients": chosen_by}
    for name, gradient in selections.items():
        code = sae.sparse_encode(test.x, gradient=gradient)
        out = sae.decode(code)
        sums = ReconstructionSums()
        sums.add(test.x, out)
        harm = damage(subject, out, clean)
        found[f"loss increase, {name}"] = harm["loss"]
        found[f"log loss increase, {name}"] = math.log(max(harm["loss"], 1e-6))
        found[f"KL, {name}"] = harm["kl"]
        found[f"FVU, {name}"] = sums.fvu
        if gradient is None:
            fired = code.fired()
            found["dead share"] = float((fired == 0).double().mean())
            effect = steering(subject, sae, fired > 0, test.x, seed, settings)
            found["steering effect"] = effect
            found["log steering effect"] = math.log(effect)
    return found


@torch.no_grad()
def clean_logits(subject: Subject) -> Tensor:
    """Returns the logits (windows, tokens, vocabulary) of the model as it is on its test."""
    parts = subject.test.split(WINDOWS_AT_ONCE)
    return torch.cat([_logits(subject.model(input_ids=ids)) for ids in parts])


@torch.no_grad()
def damage(subject: Subject, activations: Tensor, clean: Tensor) -> dict[str, float]:
    """Returns how loss and predictions change if these stand in the place of the activations.

    Args:
        subject: Model and test windows.
        activations: (rows, d_in), of all tokens.
        clean: As from `clean_logits`.

    Returns:
        "loss", the increase of the cross-entropy, and "kl", of clean from patched predictions;
        both in nats for each predicted token.
    """
    loss, kl, seen = 0.0, 0.0, 0
    rows = activations.view(*subject.test.shape, -1)
    for ids, stand_in, before in zip(
        *(each.split(WINDOWS_AT_ONCE) for each in (subject.test, rows, clean)), strict=True
    ):
        with replaced(subject, stand_in):
            after = _logits(subject.model(input_ids=ids))
        change = _token_losses(after, ids) - _token_losses(before, ids)
        loss += float(change.sum(dtype=torch.float64))
        seen += change.numel()
        divergence = F.kl_div(
            after[:, :-1].log_softmax(-1), before[:, :-1].log_softmax(-1), log_target=True,
            reduction="sum",
        )  # fmt: skip
        kl += float(divergence)
    return {"loss": loss / seen, "kl": kl / seen}


@torch.no_grad()
def steering(
    subject: Subject,
    sae: SparseAutoencoder,
    alive: Tensor,
    x: Tensor,
    seed: int,
    settings: Mapping[str, Any],
) -> float:
    """Returns the mean |change of a logit| by one latent's direction, all of the same length.

    Latents are drawn from those that fire; the length is half the mean norm of activations, added
    at every token of windows that have nothing to do with the latent.
    """
    draw = generator(seed, "steering")
    index = alive.nonzero()[:, 0]
    chosen = index[torch.randperm(len(index), generator=draw)[: settings["steered"]]]
    windows = subject.test[: settings["steered_windows"]]
    inner = x.view(*subject.test.shape, -1)[: len(windows)]
    length = 0.5 * float(x.norm(dim=1).mean())
    before = _logits(subject.model(input_ids=windows))
    total = 0.0
    for direction in F.normalize(sae.decoder_rows()[chosen], dim=1):
        with replaced(subject, inner + length * direction):
            after = _logits(subject.model(input_ids=windows))
        total += float((after - before).abs().mean())
    return total / len(chosen)


@contextmanager
def replaced(subject: Subject, activations: Tensor) -> Iterator[None]:
    """Puts other activations (windows, tokens, d_in) in the place, in the block."""

    def give(module: nn.Module, inputs: Any, output: Any) -> Any:
        return (activations, *output[1:]) if isinstance(output, tuple) else activations

    handle = hook_point(subject.model, subject.at).module.register_forward_hook(give)
    try:
        yield
    finally:
        handle.remove()


def _logits(output: Any) -> Tensor:
    found: Tensor = output if isinstance(output, Tensor) else output.logits
    return found


def _token_losses(logits: Tensor, ids: Tensor) -> Tensor:
    """Returns (windows * (tokens - 1),) cross-entropies of the next tokens."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
