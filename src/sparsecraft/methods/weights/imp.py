"""Iterative magnitude pruning: train, cut the smallest weights, rewind, and again.

Frankle and Carbin (2019) find small networks that train well from the start ("lottery tickets") by
training the large one, removing its smallest weights and setting the rest back to where they
began. Chen et al. (2020) rewind BERT to its pre-trained weights in the same way. Paper 13 compares
its one-shot magnitude pruning with these tickets, and finds the masks nearly equal up to the knee.

The papers prune one fraction of what is left in each round (a fifth) or one fraction of everything
(a tenth); `path` chooses between the two, and the rounds end at the sparsity asked, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.errors import InvalidValue, check_sparsity
from sparsecraft.core.kinds import Recipe, Train
from sparsecraft.core.mask import Mask
from sparsecraft.core.schedules import Exponential, Linear, Schedule
from sparsecraft.model.shrink import shrink
from sparsecraft.model.targets import find_targets


@dataclass(frozen=True)
class Tickets:
    """The masks of all rounds, the last one being the outcome.

    Args:
        masks: One for each round, each a part of the one before.
    """

    masks: tuple[Mask, ...]

    @property
    def mask(self) -> Mask:
        """The mask of the last round."""
        return self.masks[-1]


@method(
    "iterative_magnitude",
    paper=Paper(
        "Frankle, Carbin",
        2018,
        "1803.03635",
        title="The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks",
    ),
    taxonomy=Taxonomy(
        of="weights",
        when="during training",
        start_to_end="dense to sparse",
        mask="shrinking",
        criterion="magnitude",
        granularity=("unstructured",),
        allocation="global",
        budget="hard global",
        needs=("data", "retraining", "dense weights"),
        cost="one training for each round, and one more of the ticket",
        runtime="storage",
    ),
)
@dataclass(frozen=True, kw_only=True)
class IterativeMagnitude(Recipe):
    """Finds a ticket in rounds: train, prune the smallest weights of all layers, rewind.

    Args:
        sparsity: Fraction of the targeted weights that is zero after the last round, in [0, 1).
        rounds: How many trainings.
        path: How the density falls: "geometric" removes one fraction of what is left in each
            round, "linear" one fraction of everything.
        targets: Which layers; see `find_targets`.

    Reference:
        Frankle, Carbin, 2018, arXiv 1803.03635, section 2; Chen et al., 2020, arXiv 2007.12223.
    """

    sparsity: float = 0.5
    rounds: int = 3
    path: Literal["geometric", "linear"] = "geometric"
    targets: str | None = None

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        if self.rounds < 1:
            raise InvalidValue(f"rounds={self.rounds} is not allowed: give at least 1")
        if self.path not in ("geometric", "linear"):
            raise InvalidValue(f"path={self.path!r} is not allowed: give 'geometric' or 'linear'")

    @property
    def schedule(self) -> Schedule:
        """The density after each round, by its number from 1."""
        kind = Exponential if self.path == "geometric" else Linear
        return kind(final=1 - self.sparsity, end=self.rounds)

    def run(self, model: nn.Module, train: Train) -> Tickets:
        """Returns the masks of all rounds; the model is left rewound, with the last one applied.

        Args:
            model: Starts at the weights to which every round rewinds, such as pre-trained ones.
            train: Trains in place under a mask. It is called with the branches "round 1",
                "round 2" and so on; to train the ticket itself is left to the caller.

        Raises:
            NonFinite: If a training leaves a targeted weight that is not finite.
        """
        found = find_targets(model, self.targets)
        start = {name: value.clone() for name, value in model.state_dict().items()}
        masks: list[Mask] = []
        for number in range(1, self.rounds + 1):
            before = masks[-1] if masks else None
            train(model, before, branch=f"round {number}")
            masks.append(shrink(model, found, before, self.schedule.density(number)))
            model.load_state_dict(start)
            masks[-1].apply_(dict(model.named_parameters()))
        return Tickets(tuple(masks))
