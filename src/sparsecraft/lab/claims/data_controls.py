"""Data without structure, and data without end: the controls of claims about what data cause.

Paper 05 asks whether activation sparsity comes from structure in the data or from few data. So
labels, inputs or both are replaced by noise that stays fixed over the training, or every step sees
fresh examples of a process that never repeats itself.

Reference:
    Li et al., 2022, arXiv 2210.06313, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.seeds import generator


def noisy_labels(labels: Tensor, fraction: float, classes: int, seed: int) -> Tensor:
    """Returns the labels with a fraction of them drawn anew, uniformly over all classes.

    A drawn label may happen to be the right one. The choice is fixed by the seed, so that every
    arm and every epoch sees the same labels.

    Args:
        labels: (n,) class indices.
        fraction: Share of the examples, in [0, 1]; 1 makes all labels random.
        classes: How many there are.
        seed: Of the choice and of the labels.

    Example:
        >>> found = noisy_labels(torch.zeros(1000, dtype=torch.long), 0.4, 10, seed=0)
        >>> bool(abs(int((found != 0).sum()) - 360) < 40)
        True
    """
    if not 0 <= fraction <= 1:
        raise InvalidValue(
            f"fraction={fraction} is not allowed: it is a share of labels, in [0, 1]"
        )
    chosen = torch.randperm(len(labels), generator=generator(seed, "noisy labels"))
    chosen = chosen[: round(fraction * len(labels))]
    drawn = torch.randint(classes, (len(chosen),), generator=generator(seed, "random labels"))
    found = labels.clone()
    found[chosen] = drawn.to(labels)
    return found


def random_inputs(inputs: Tensor, seed: int) -> Tensor:
    """Returns Gaussian noise of the inputs' shape, mean and spread, fixed by the seed.

    Args:
        inputs: (n, ...).
        seed: Of the noise.
    """
    noise = torch.randn(inputs.shape, generator=generator(seed, "random inputs")).to(inputs)
    return inputs.mean() + inputs.std() * noise


@dataclass(frozen=True, eq=False)
class GaussianClasses:
    """A process that draws examples without end: each class is a Gaussian.

    Args:
        means: (classes, *shape), of each class.
        factors: (classes, entries, entries), such that factor @ factor.T is a class' covariance.
    """

    means: Tensor
    factors: Tensor

    @classmethod
    def fitted(cls, inputs: Tensor, labels: Tensor) -> GaussianClasses:
        """Returns the process with the mean and covariance of each class of some data.

        Args:
            inputs: (n, *shape); every class has at least two examples.
            labels: (n,) class indices, from 0 without gaps.
        """
        sizes = torch.bincount(labels)
        if int(sizes.min()) < 2:
            raise InvalidValue(f"class {int(sizes.argmin())} has fewer than two examples to fit")
        means, factors = [], []
        for label in range(len(sizes)):
            rows = inputs[labels == label].flatten(1).double()
            mean = rows.mean(0)
            # Deviations of n examples, scaled, are a factor of the covariance already.
            scaled = (rows - mean).T / (len(rows) - 1) ** 0.5
            values, vectors = torch.linalg.eigh(scaled @ scaled.T)
            means.append(mean.view(inputs.shape[1:]))
            factors.append(vectors * values.clamp(min=0).sqrt())
        return cls(torch.stack(means).to(inputs), torch.stack(factors).to(inputs))

    def draw(self, count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns fresh inputs (count, *shape) and their labels (count,).

        Args:
            count: How many.
            draw: A generator; the same one goes on where it stopped.
        """
        labels = torch.randint(len(self.means), (count,), generator=draw)
        normal = torch.randn(count, self.factors.shape[1], generator=draw)
        deviations = torch.einsum("nij,nj->ni", self.factors[labels], normal.to(self.factors))
        return self.means[labels] + deviations.view(count, *self.means.shape[1:]), labels
