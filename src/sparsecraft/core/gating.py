"""Which entries of an activation each token keeps: the rule that every gate comes down to.

A gate gives each entry the score |x_j| c_j and keeps either the k largest of a token or those
above a fixed threshold. c is the norm of the column that the entry is multiplied with (WINA), or
one (TEAL, CATS, top-k layers). It is the same rule whether the zeros are only simulated, trained
with, or make a kernel skip rows of a weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue
from sparsecraft.kernels.selection import keep_largest_per_row


@dataclass(frozen=True, eq=False)
class ActivationGate:
    """Keeps the entries of largest |x_j| * norms_j of every token.

    Args:
        keep: Entries that each token keeps, exactly; of equal scores the first stays.
        threshold: Or: what a score must exceed to be kept.
        norms: (features,) factors of the score, or None for ones.
        prefill: Where several tokens of a sequence come at once, the share of them that is gated,
            counted from the end; the others pass whole. A token alone is always gated.

    Raises:
        InvalidValue: Unless exactly one of `keep` (at least 1) and `threshold` (at least 0) is
            given, and `prefill` lies in [0, 1].

    Example:
        >>> import torch
        >>> gate = ActivationGate(keep=1, norms=torch.tensor([1.0, 4.0]))
        >>> gate.apply(torch.tensor([[3.0, -1.0]]))
        tensor([[ 0., -1.]])

    Reference:
        Chen et al., 2025, arXiv 2505.19427, section 3; Liu et al., 2024, arXiv 2408.14690.
    """

    keep: int | None = None
    threshold: float | None = None
    norms: Tensor | None = None
    prefill: float = 1.0

    def __post_init__(self) -> None:
        if (self.keep is None) == (self.threshold is None):
            raise InvalidValue(
                f"a gate needs either keep or threshold, not keep={self.keep} and "
                f"threshold={self.threshold}"
            )
        if self.keep is not None and self.keep < 1:
            raise InvalidValue(f"keep={self.keep} is not allowed: a token keeps at least 1 entry")
        if self.threshold is not None and not self.threshold >= 0:
            raise InvalidValue(f"threshold={self.threshold} is not allowed: give at least 0")
        if not 0 <= self.prefill <= 1:
            raise InvalidValue(f"prefill={self.prefill} is not allowed: give a share in [0, 1]")

    def scores(self, x: Tensor) -> Tensor:
        """Returns |x_j| * norms_j, like x."""
        size = x.detach().abs()
        return size if self.norms is None else size * self.norms.to(size)

    def mask(self, x: Tensor) -> Tensor:
        """Returns a bool tensor like x, True where kept.

        Args:
            x: (..., features); with three axes or more the last but one counts the tokens of a
                sequence, and the first of several are spared as `prefill` says.

        Raises:
            InvalidValue: If `keep` exceeds the number of features.
        """
        chosen = self._chosen(self.scores(x))
        spared = self.spared(x)
        if spared:
            chosen[..., :spared, :] = True
        return chosen

    def apply(self, x: Tensor) -> Tensor:
        """Returns x with zeros where it is not kept; the gradient passes what is kept."""
        return x.masked_fill(~self.mask(x), 0)

    def _chosen(self, scores: Tensor) -> Tensor:
        if self.threshold is not None:
            return scores > self.threshold
        features = scores.shape[-1]
        if self.keep is None or self.keep > features:
            raise InvalidValue(f"keep={self.keep} exceeds the {features} entries of a token")
        if torch.compiler.is_compiling():
            # The selection runs outside of torch; a stable sort gives the same entries, ties too.
            first = scores.sort(dim=-1, descending=True, stable=True).indices[..., : self.keep]
            return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, first, True)
        rows = scores.reshape(-1, features)
        return keep_largest_per_row(rows, self.keep).view(scores.shape)

    def spared(self, x: Tensor) -> int:
        """Returns how many tokens pass whole at the beginning of each sequence of x."""
        tokens = x.shape[-2] if x.dim() >= 3 else 1
        return 0 if tokens == 1 else tokens - int(self.prefill * tokens)


@dataclass(frozen=True, eq=False)
class RandomGate(ActivationGate):
    """Keeps a random subset of every token's entries: the control of all gates.

    The subset is drawn from the seed and the token's own bits, so that the same token gives the
    same one in any process, whatever ran before it.

    Args:
        seed: Of the subsets.
    """

    seed: int = 0

    def scores(self, x: Tensor) -> Tensor:
        """Returns a random number in [0, 1) for every entry, float32."""
        bits = x.detach().float().contiguous().view(torch.int32).long()
        places = torch.arange(x.shape[-1], device=x.device)
        token = _mixed(bits * (2 * places + 1)).sum(-1, keepdim=True)
        drawn = _mixed(_mixed(token + self.seed) + places)
        return (drawn & 0xFFFFFF).float() / (1 << 24)


def _mixed(number: Tensor) -> Tensor:
    """Returns int64 numbers whose bits depend on all bits of the given ones (a hash)."""
    for multiplier in (-4658895280553007687, -7723592293110705685):
        number = (number ^ (number >> 30)) * multiplier
    return number ^ (number >> 31)
