"""Counts of what fires: integers for each neuron and for each number of firing neurons.

They are exact, add up over batches and ranks, and are all that the figures of a report are made
of: the share of non-zeros, the firing frequency of a neuron, the spread over tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from sparsecraft.core.errors import CheckpointError, InvalidValue, NonFinite
from sparsecraft.model.ranks import world_size


@dataclass(eq=False)
class Counts:
    """The counts of one site.

    Args:
        fires: (neurons,) int64, the tokens for which each neuron fired; None before the first.
        histogram: (neurons + 1,) int64, the tokens by how many neurons fired.
        passed_by: Tokens that a router sent elsewhere.
    """

    fires: Tensor | None = None
    histogram: Tensor | None = None
    passed_by: int = 0

    @property
    def tokens(self) -> int:
        """How many tokens were counted."""
        return 0 if self.histogram is None else int(self.histogram.sum())

    @property
    def nonzeros(self) -> int:
        """How many entries fired in all."""
        return 0 if self.fires is None else int(self.fires.sum())

    @property
    def neurons(self) -> int:
        """Entries of a token; 0 before the first."""
        return 0 if self.fires is None else len(self.fires)

    @property
    def share(self) -> float:
        """Share of the entries that fired; NaN before the first token."""
        return self.nonzeros / (self.tokens * self.neurons) if self.tokens else float("nan")

    @property
    def reach(self) -> float:
        """Share of the model's tokens that came here; below 1 for an expert."""
        return self.tokens / max(1, self.tokens + self.passed_by)

    @torch.no_grad()
    def add(self, tokens: Tensor, threshold: float, name: str) -> None:
        """Counts the entries of (tokens, neurons) whose magnitude exceeds the threshold.

        Raises:
            NonFinite: If one of them is NaN or infinite.
            InvalidValue: If another number of neurons was seen before.
        """
        if not torch.isfinite(tokens).all():
            raise NonFinite(
                f"the activation of {name} has NaN or infinite values; check the model and its "
                "input, or load the model in float32"
            )
        width = tokens.shape[-1]
        if self.fires is None or self.histogram is None:
            self.fires = torch.zeros(width, dtype=torch.int64, device=tokens.device)
            self.histogram = torch.zeros(width + 1, dtype=torch.int64, device=tokens.device)
        if width != self.neurons:
            raise InvalidValue(
                f"{name} gave {self.neurons} entries a token before and {width} now: it serves "
                "several layers. Give each layer an activation module of its own."
            )
        # |x| > 0 leaves out -0.0, which a test of the bits would count.
        firing = tokens.abs() > threshold
        self.fires += firing.sum(0)
        self.histogram += torch.bincount(firing.sum(1), minlength=width + 1)

    def quantile(self, share: float) -> int:
        """Returns the number of firing neurons that `share` of the tokens do not exceed."""
        if self.histogram is None:
            raise InvalidValue("nothing was counted yet")
        reached = self.histogram.cumsum(0) >= share * self.tokens
        return int(reached.int().argmax())

    def over_ranks(self) -> Counts:
        """Returns the sum of all processes' counts; itself in a single process."""
        if world_size() == 1 or self.fires is None or self.histogram is None:
            return self
        passed_by = self.fires.new_tensor(self.passed_by)
        fires, histogram = self.fires.clone(), self.histogram.clone()
        for each in (fires, histogram, passed_by):
            dist.all_reduce(each)
        return Counts(fires, histogram, int(passed_by))

    def state_dict(self) -> dict[str, Tensor]:
        """Returns copies of the tensors; none before the first token."""
        if self.fires is None or self.histogram is None:
            return {}
        passed_by = torch.tensor(self.passed_by)
        return {
            "fires": self.fires.clone(),
            "histogram": self.histogram.clone(),
            "passed_by": passed_by,
        }

    @classmethod
    def from_state(cls, state: dict[str, Tensor], name: str) -> Counts:
        """Returns the counts of a state.

        Raises:
            CheckpointError: If the state does not fit together.
        """
        if not state:
            return cls()
        fires, histogram = state["fires"].clone(), state["histogram"].clone()
        weighted = int((histogram * torch.arange(len(histogram), device=histogram.device)).sum())
        if len(histogram) != len(fires) + 1 or weighted != int(fires.sum()):
            raise CheckpointError(f"the counts of {name} contradict each other; the state is bad")
        return cls(fires, histogram, int(state["passed_by"]))
