"""What a method may ask to know of a layer's input, gathered in one streaming pass.

Each statistic sees the input of a layer as sequences of tokens and keeps running sums in float32
(float64 where sums of squares need it), so that its memory does not grow with the data.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Statistic(ABC):
    """A running summary of a layer's input.

    Args:
        features: Width of the input.
        device: Where the sums live.
    """

    def __init__(self, features: int, device: torch.device | str = "cpu") -> None:
        self.features = features
        self.device = torch.device(device)
        self.sequences = 0
        self.tokens = 0

    def observe(self, tokens: Tensor) -> None:
        """Takes one sequence into account.

        Args:
            tokens: (tokens, features), padding removed.
        """
        self.sequences += 1
        self.tokens += tokens.shape[0]
        self.add(tokens.to(self.device, torch.float32))

    @abstractmethod
    def add(self, tokens: Tensor) -> None:
        """Adds one float32 sequence (tokens, features) to the sums."""

    @property
    @abstractmethod
    def value(self) -> Tensor:
        """The statistic over everything observed."""


class InputNorm(Statistic):
    """sqrt((1/n) sum over sequences and tokens of x_j^2), n the number of sequences: (features,).

    Reference:
        Sun et al., 2023, arXiv 2306.11695, eq. 1, in the scale of its official code.
    """

    def __init__(self, features: int, device: torch.device | str = "cpu") -> None:
        super().__init__(features, device)
        self.total = torch.zeros(features, dtype=torch.float64, device=self.device)

    def add(self, tokens: Tensor) -> None:
        """Adds the squares of one sequence."""
        self.total += tokens.square().sum(0)

    @property
    def value(self) -> Tensor:
        """(features,) float32."""
        return (self.total / max(1, self.sequences)).sqrt().float()


class InputSum(Statistic):
    """(1/n) sum over sequences and tokens of x_j, n the number of sequences: (features,).

    Reference:
        Zhang et al., 2023, arXiv 2310.08915: the mean input on the scale of a whole sequence.
    """

    def __init__(self, features: int, device: torch.device | str = "cpu") -> None:
        super().__init__(features, device)
        self.total = torch.zeros(features, dtype=torch.float64, device=self.device)

    def add(self, tokens: Tensor) -> None:
        """Adds one sequence."""
        self.total += tokens.sum(0)

    @property
    def value(self) -> Tensor:
        """(features,) float32."""
        return (self.total / max(1, self.sequences)).float()


class InputVariance(Statistic):
    """Token-weighted mean over sequences of the variance within each sequence: (features,).

    Reference:
        Zhang et al., 2023, arXiv 2310.08915; variance between sequences is not added.
    """

    def __init__(self, features: int, device: torch.device | str = "cpu") -> None:
        super().__init__(features, device)
        self.total = torch.zeros(features, dtype=torch.float64, device=self.device)

    def add(self, tokens: Tensor) -> None:
        """Adds the population variance of one sequence, times its length."""
        self.total += tokens.var(0, correction=0) * tokens.shape[0]

    @property
    def value(self) -> Tensor:
        """(features,) float32."""
        return (self.total / max(1, self.tokens)).float()


class Hessian(Statistic):
    """H = (2/n) sum over sequences and tokens of x x^T, n the number of sequences.

    Tokens are gathered until a product of them is worth its pass over H, of which only the upper
    part is computed.

    Reference:
        Frantar, Alistarh, 2023, arXiv 2301.00774, section 3.
    """

    TOKENS_AT_ONCE = 1024
    PANELS = 8

    def __init__(self, features: int, device: torch.device | str = "cpu") -> None:
        super().__init__(features, device)
        self.total = torch.zeros(features, features, dtype=torch.float32, device=self.device)
        self._waiting: list[Tensor] = []

    def add(self, tokens: Tensor) -> None:
        """Adds the outer products of one sequence."""
        # A copy: the caller may write over its activations before the product is taken.
        self._waiting.append(tokens.clone())
        if sum(map(len, self._waiting)) >= self.TOKENS_AT_ONCE:
            self._multiply()

    @property
    def value(self) -> Tensor:
        """(features, features) float32."""
        self._multiply()
        for rows in self._panels():
            self.total[rows.stop :, rows] = self.total[rows, rows.stop :].T
        return self.total * (2.0 / max(1, self.sequences))

    def _multiply(self) -> None:
        """Adds the products of the waiting tokens to the upper part, in panels of rows."""
        if not self._waiting:
            return
        tokens = torch.cat(self._waiting)
        self._waiting.clear()
        by_feature = tokens.T.contiguous()
        for rows in self._panels():
            self.total[rows, rows.start :].addmm_(by_feature[rows], tokens[:, rows.start :])

    def _panels(self) -> list[slice]:
        height = -(-self.features // self.PANELS)
        starts = range(0, self.features, height)
        return [slice(start, min(start + height, self.features)) for start in starts]
