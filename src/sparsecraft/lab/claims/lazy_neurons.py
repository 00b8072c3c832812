"""The measurements of claim 05: how sparsity emerges in training, and what top-k MLPs bring.

Shares of non-zeros are taken in evaluation mode, before the first step and at some steps of the
training. Top-k networks compute with k entries of each token's
activation from the first step on; their controls are the plain ReLU network, one whose MLPs have
only k units, and one that keeps k random entries of each token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecraft.core.seeds import generator
from sparsecraft.lab.claims import digits, source_bytes
from sparsecraft.lab.claims.data_controls import GaussianClasses, noisy_labels, random_inputs
from sparsecraft.lab.claims.relu_transformers import PatchClassifier, ReluDecoder, initialise
from sparsecraft.lab.measures import evaluate_robustness
from sparsecraft.lab.tasks.training import seeded
from sparsecraft.model.activation_sparsity import ActivationMonitor
from sparsecraft.model.topk_mlp import TopKMLP

LAYERS, LANGUAGE_WIDTH, CONTEXT = 2, 64, 64
IMAGE_WIDTH = 48
MLP_BATCH = 128
PROBE = 32
SHARE = "non-zero share"


def language_emergence(settings: Mapping[str, Any], seed: int) -> dict[str, float]:
    """Returns the shares of non-zeros of a byte model by step and layer, and its loss.

    Args:
        settings: "hidden" units, "steps", "rate", "marks" (steps at which to look), and
            optionally "layers" and "k".
        seed: Of everything random.
    """
    data = source_bytes.load_source(seed)
    hidden, k = settings["hidden"], settings.get("k")
    layers = settings.get("layers", LAYERS)
    model = ReluDecoder(layers, LANGUAGE_WIDTH, CONTEXT, lambda width: TopKMLP(width, hidden, k))
    initialise(model, seed)
    probe = [{"input_ids": source_bytes.cut(data.validation, CONTEXT)[:PROBE]}]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings["rate"], betas=(0.9, 0.95), weight_decay=0.01
    )
    watch = _Watch(model, probe, settings["marks"])
    optimizer.register_step_post_hook(watch.after_step)
    source_bytes.train(
        model,  # type: ignore[arg-type]
        data.train,
        seed=seed,
        steps=settings["steps"],
        rate=settings["rate"],
        optimizer=optimizer,
    )
    bits = {
        name: source_bytes.bits_per_byte(model, part)  # type: ignore[arg-type]
        for name, part in (
            ("validation bits per byte", data.validation),
            ("bits per byte", data.test),
        )
    }
    return {**watch.metrics(), **bits}


def digit_emergence(settings: Mapping[str, Any], seed: int) -> dict[str, float]:
    """Returns the shares of non-zeros of a 2-layer MLP on digits by step, and what it learned.

    It learns all images that are not of the test part, and is looked at on them; layers begin as
    torch draws them.

    Args:
        settings: "data" ("true labels", "random labels", "random inputs" or "infinite data"),
            "hidden" units, "steps", "rate" and "marks".
        seed: Of everything random.
    """
    batches, probe = _digit_batches(settings["data"], seed)
    model = seeded(lambda: _two_layers(settings["hidden"]), seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings["rate"])
    watch = _Watch(model, [{"input": probe}], settings["marks"])
    optimizer.register_step_post_hook(watch.after_step)
    for step in range(settings["steps"]):
        images, labels = batches(step)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
    return {**watch.metrics(), "training loss": loss.item()}


def robustness(settings: Mapping[str, Any], seed: int) -> dict[str, float]:
    """Returns what a network is worth on clean and noisy digits, trained on clean and noisy labels.

    The learning rate is the best of "rates" on the clean validation part after training on clean
    labels; with noisy labels the network is trained at that rate, for as long, and the last step
    counts: clean labels choose nothing there.

    Args:
        settings: "arm" ("dense", "top-k", "narrow" or "random k"), "hidden", "k", "epochs",
            "rates" and "label_noise".
        seed: Of everything random.
    """
    data = digits.load_digits(seed)
    tried: list[tuple[float, int, float, PatchClassifier]] = []
    for rate in settings["rates"]:
        model = _classifier(settings, data.train, seed, rate)
        tried.append((digits.accuracy(model, data.validation), -len(tried), rate, model))
    best, _, rate, model = max(tried, key=lambda each: each[:2])
    found = evaluate_robustness(model, data.test.images, data.test.labels).to_json()
    for noise in settings["label_noise"]:
        labels = noisy_labels(data.train.labels, noise, digits.CLASSES, seed)
        noisy = _classifier(settings, digits.Part(data.train.images, labels), seed, rate)
        after = evaluate_robustness(noisy, data.test.images, data.test.labels, noises=())
        found[f"accuracy after {noise:.0%} label noise"] = after.accuracy
        found[f"ECE after {noise:.0%} label noise"] = after.ece
    report = ActivationMonitor(model).measure([{"images": data.test.images}])
    return {
        **found,
        "validation accuracy": best,
        "learning rate": rate,
        "active share": report.nonzero,
        "second product, MFLOP": report.flops["second"] / 1e6,
    }


class RandomKept(nn.Module):
    """ReLU of which each token keeps k entries drawn anew at every call.

    Args:
        k: Entries kept.
        seed: Of the choice.
    """

    def __init__(self, k: int, seed: int) -> None:
        super().__init__()
        self.k, self._draw = k, generator(seed, "kept at random")

    def forward(self, x: Tensor) -> Tensor:
        """Returns (..., features), zero but for the kept entries."""
        scores = torch.rand(x.shape, generator=self._draw)
        kept = torch.zeros(x.shape, dtype=torch.bool)
        kept.scatter_(-1, scores.topk(self.k, dim=-1).indices, True)
        return x.relu().masked_fill(~kept, 0)


def _classifier(
    settings: Mapping[str, Any], data: digits.Part, seed: int, rate: float
) -> PatchClassifier:
    model = PatchClassifier(LAYERS, IMAGE_WIDTH, lambda width: _mlp(settings, width, seed))
    initialise(model, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    digits.train(model, data, seed=seed, rate=rate, epochs=settings["epochs"], optimizer=optimizer)
    return model


def _mlp(settings: Mapping[str, Any], width: int, seed: int) -> nn.Module:
    hidden, k, arm = settings["hidden"], settings["k"], settings["arm"]
    if arm == "narrow":
        return TopKMLP(width, k)
    layer = TopKMLP(width, hidden, k if arm == "top-k" else None)
    if arm == "random k":
        layer.activation = RandomKept(k, seed)
    return layer


def _two_layers(hidden: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, digits.CLASSES)
    )


Draw = Callable[[int], tuple[Tensor, Tensor]]


def _digit_batches(kind: str, seed: int) -> tuple[Draw, Tensor]:
    """Returns what draws the batch of a step, and inputs of the same kind to look at."""
    data = digits.load_digits(seed)
    images = torch.cat([data.train.images, data.validation.images])
    labels = torch.cat([data.train.labels, data.validation.labels])
    if kind == "infinite data":
        process = GaussianClasses.fitted(images, labels)
        draw = generator(seed, "infinite data")
        fresh, _ = process.draw(len(images), generator(seed, "infinite data", "probe"))
        return lambda step: process.draw(MLP_BATCH, draw), fresh
    if kind == "random labels":
        labels = noisy_labels(labels, 1.0, digits.CLASSES, seed)
    elif kind == "random inputs":
        images = random_inputs(images, seed)
    order = generator(seed, "order")

    def batch(step: int) -> tuple[Tensor, Tensor]:
        index = torch.randperm(len(labels), generator=order)[:MLP_BATCH]
        return images[index], labels[index]

    return batch, images


class _Watch:
    """Looks at the activations before the first step and after the marked ones."""

    def __init__(
        self, model: nn.Module, probe: Sequence[Mapping[str, Tensor]], marks: Sequence[int]
    ) -> None:
        self.monitor, self.probe, self.marks = ActivationMonitor(model), probe, set(marks)
        self.step = 0
        self._look()

    def after_step(self, *_: Any) -> None:
        """Counts a step of the optimiser."""
        self.step += 1
        self._look()

    def metrics(self) -> dict[str, float]:
        """Returns the mean share by step, and each layer's at the first and the last."""
        curve = self.monitor.curve
        means = {f"{SHARE} at step {m.step}": _mean(m.nonzero.values()) for m in curve}
        layers = {
            f"{SHARE} of layer {index}, step {moment.step}": share
            for moment in (curve[0], curve[-1])
            for index, share in enumerate(moment.nonzero.values())
        }
        return {**means, **layers}

    def _look(self) -> None:
        if self.step in self.marks:
            self.monitor.measure(self.probe)
            self.monitor.record(self.step)


def _mean(values: Any) -> float:
    found = list(values)
    return sum(found) / len(found)
