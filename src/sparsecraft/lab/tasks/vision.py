"""Image classifiers trained here, once, and judged by their accuracy."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from sparsecraft.core.seeds import generator
from sparsecraft.lab.tasks import cache
from sparsecraft.lab.tasks.base import (
    Batch,
    Progress,
    Scores,
    Split,
    Task,
    check_finite,
    check_positive,
    check_split,
    evaluating,
    inputs_of,
    logits_of,
    to_device,
)
from sparsecraft.lab.tasks.training import Fit, fit, seeded

Part = Literal["training", "validation", "test"]
PARTS: tuple[Part, Part, Part] = ("training", "validation", "test")
BATCH = 256
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Images:
    """Pictures and what they show.

    Args:
        pixels: (examples, channels, height, width) float32, about zero mean and unit spread.
        labels: (examples,) class numbers.
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> Images:
        """Returns the examples of these numbers."""
        return Images(self.pixels[index], self.labels[index])

    def batch(self, index: Tensor) -> Batch:
        """Returns these examples as a batch with labels."""
        return {"pixel_values": self.pixels[index], "labels": self.labels[index]}


class ImageTask(Task):
    """A small classifier, trained when it is first asked for and then kept in the cache.

    Args:
        name: The task's name.
        about: One sentence on the data.
        images: By part; pictures that occur twice are dropped from the earlier part.
        architecture: Names the network, for the fingerprint and the description.
        schedule: Of the training.
    """

    metric = "accuracy"
    higher_is_better = True
    kind = "classification"

    def __init__(
        self,
        *,
        name: str,
        about: str,
        images: dict[Part, Images],
        architecture: str,
        schedule: Fit,
    ) -> None:
        images = separate(images)
        self.name = name
        self.images = images
        self.schedule = schedule
        settings = {"task": name, "network": architecture, "fit": vars(schedule)}
        pixels = [images[part].pixels.numpy().tobytes() for part in PARTS]
        labels = [images[part].labels.numpy().tobytes() for part in PARTS]
        self.fingerprint = cache.fingerprint(settings, *pixels, *labels)
        self.description = (
            f"{about} {architecture}, trained here in {schedule.steps} steps on "
            f"{len(images['training'])} examples, is scored on {len(images['validation'])} "
            f"validation and {len(images['test'])} test examples."
        )

    @abstractmethod
    def build(self) -> nn.Module:
        """Returns the untrained network."""

    @property
    def classes(self) -> int:
        """The number of classes."""
        return int(self.images["training"].labels.max()) + 1

    def load_model(self) -> nn.Module:
        """Returns a fresh dense model; trains it where it is not cached."""
        from safetensors.torch import load_file

        model = self._fresh()
        model.load_state_dict(load_file(self._model_folder / WEIGHTS))
        return model.eval()

    def calibration(self, max_tokens: int, seed: int) -> list[Batch]:
        """Returns batches of at most `max_tokens` training examples in all, without labels."""
        check_positive(max_tokens=max_tokens)
        training = self.images["training"]
        draw = generator(seed, self.name, "calibration")
        chosen = torch.randperm(len(training), generator=draw)[:max_tokens]
        return [inputs_of(training.batch(part)) for part in chosen.split(64)]

    def training_batches(self, batch_size: int, seed: int) -> Iterator[Batch]:
        """Yields shuffled training examples with labels, without end."""
        check_positive(batch_size=batch_size)
        training = self.images["training"]
        epoch = 0
        while True:
            order = torch.randperm(len(training), generator=generator(seed, self.name, epoch))
            for start in range(0, max(1, len(order) - batch_size + 1), batch_size):
                yield training.batch(order[start : start + batch_size])
            epoch += 1

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns the mean cross-entropy."""
        moved = to_device(batch, model)
        return functional.cross_entropy(logits_of(model, inputs_of(moved)), moved["labels"])

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Returns (examples, classes) logits."""
        return logits_of(model, to_device(inputs_of(batch), model))

    def example_input(self, batch_size: int) -> Batch:
        """Returns training examples, repeated where more are asked for than there are."""
        check_positive(batch_size=batch_size)
        training = self.images["training"]
        return inputs_of(training.batch(torch.arange(batch_size) % len(training)))

    def evaluate(self, model: nn.Module, split: Split, progress: Progress | None = None) -> Scores:
        """Returns 1 for each example classified rightly and 0 for the others."""
        check_split(split)
        images = self.images[split]
        right: list[Tensor] = []
        loss = 0.0
        done = 0
        with evaluating(model):
            for part in torch.arange(len(images)).split(BATCH):
                batch = images.batch(part)
                logits = self.outputs(model, batch).float().cpu()
                check_finite(logits, self.name)
                loss += float(functional.cross_entropy(logits, batch["labels"], reduction="sum"))
                right.append((logits.argmax(1) == batch["labels"]).double())
                done += len(part)
                if progress:
                    progress(done, len(images))
        values = torch.cat(right).numpy()
        return self.scores(values, {"loss": loss / len(images)})

    def _fresh(self) -> nn.Module:
        return seeded(self.build, self.schedule.seed)

    @cached_property
    def _model_folder(self) -> Path:
        return cache.cached(f"{self.name}-model-{self.fingerprint}", self._train)

    def _train(self, folder: Path) -> None:
        from safetensors.torch import save_file

        schedule = self.schedule
        batches = self.training_batches(schedule.batch_size, schedule.seed)
        model = fit(self._fresh(), batches, self.loss, schedule, self.name)
        save_file(model.state_dict(), folder / WEIGHTS)


class DescribedImageTask(ImageTask):
    """An image task whose class attributes say everything but the network.

    Args:
        steps: Training steps; None takes those of `fit`.
        seed: Of the training.
    """

    name: str
    about: str
    """One sentence on the data."""
    architecture: str
    """Names the network, for the fingerprint and the description."""
    fit: Fit
    """Of the training."""

    def __init__(self, steps: int | None = None, seed: int = 0) -> None:
        chosen = self.fit.steps if steps is None else steps
        check_positive(steps=chosen)
        super().__init__(
            name=self.name,
            about=self.about,
            images=self.pictures(),
            architecture=self.architecture,
            schedule=replace(self.fit, steps=chosen, seed=seed),
        )

    @abstractmethod
    def pictures(self) -> dict[Part, Images]:
        """Returns the images by part."""


def stratified(images: Images, validation: float, test: float, seed: int) -> dict[Part, Images]:
    """Returns the three parts with the same mix of classes in each.

    Args:
        images: All examples.
        validation: Share of each class.
        test: Share of each class.
        seed: Of the shuffle.
    """
    index: dict[Part, list[Tensor]] = {part: [] for part in PARTS}
    for label in images.labels.unique().tolist():
        members = (images.labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator(seed, "split", label))]
        first, second = round(len(members) * test), round(len(members) * (test + validation))
        index["test"].append(members[:first])
        index["validation"].append(members[first:second])
        index["training"].append(members[second:])
    return {part: images.take(torch.cat(found).sort().values) for part, found in index.items()}


def separate(images: dict[Part, Images]) -> dict[Part, Images]:
    """Returns the parts without repeated pictures; the test part keeps what it shares."""
    seen: set[bytes] = set()
    parts: dict[Part, Images] = {}
    for part in reversed(PARTS):
        keep = []
        for index, row in enumerate(images[part].pixels.flatten(1).numpy()):
            key = row.tobytes()
            if key not in seen:
                seen.add(key)
                keep.append(index)
        parts[part] = images[part].take(torch.tensor(keep))
    return parts
