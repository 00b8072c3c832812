"""The activation of which each token keeps its k largest entries, and an MLP with it.

y = V Top_k(relu(K x + b1)) + b2. Gradients pass the kept entries and no others; nothing is
rescaled. Where fewer than k entries are positive, fewer are non-zero; of equal ones the first are
kept. The paper's models use ReLU. With another activation, the entries of largest magnitude stay.

Reference:
    Li et al., 2022, arXiv 2210.06313, section 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from sparsecraft.core.errors import UnknownName
from sparsecraft.core.gating import ActivationGate
from sparsecraft.core.topk import check_topk, kept_of

REPLACEMENTS: Mapping[str, type[nn.Module]] = {"relu": nn.ReLU}
"""What an activation can be replaced by."""


class TopKActivation(nn.Module):
    """An activation of which each token keeps the k largest entries of the last axis.

    It has no parameters, so that the keys of a model's state dict stay as they were.

    Args:
        activation: What comes before the choice, such as `nn.ReLU()`.
        k: How many entries a token keeps, or None.
        fraction: Or their share of the entries. With neither, all are kept.
        replaced: Name in `REPLACEMENTS`, where the model had another activation here.
        post_hoc: Whether the model was trained without it; said in reports.

    Raises:
        InvalidValue: See `check_topk`.

    Example:
        >>> import torch
        >>> TopKActivation(nn.ReLU(), k=1)(torch.tensor([[1.0, 3.0, -4.0], [-1.0, -2.0, -3.0]]))
        tensor([[0., 3., 0.],
                [0., 0., 0.]])
    """

    def __init__(
        self,
        activation: nn.Module,
        *,
        k: int | None = None,
        fraction: float | None = None,
        replaced: str | None = None,
        post_hoc: bool = False,
    ) -> None:
        super().__init__()
        if k is not None or fraction is not None:
            check_topk(k, fraction)
        self.activation = activation
        self.k, self.fraction, self.replaced, self.post_hoc = k, fraction, replaced, post_hoc
        self.train(activation.training)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (..., features), zero but for the kept entries of each token."""
        active = self.activation(x)
        if self.k is None and self.fraction is None:
            return active
        keep = kept_of(active.shape[-1], self.k, self.fraction)
        return active if keep == active.shape[-1] else ActivationGate(keep=keep).apply(active)

    def settings(self) -> dict[str, Any]:
        """Returns what `from_settings` needs to make it again."""
        return {
            "k": self.k,
            "fraction": self.fraction,
            "replaced": self.replaced,
            "post_hoc": self.post_hoc,
        }

    @classmethod
    def from_settings(cls, activation: nn.Module, **settings: Any) -> TopKActivation:
        """Returns the module in place of a model's own activation, from what `settings` gave."""
        return cls(replaced_by(activation, settings.get("replaced")), **settings)

    def extra_repr(self) -> str:
        """Returns the settings that are not at their default."""
        shown = {name: value for name, value in self.settings().items() if value}
        return ", ".join(f"{name}={value}" for name, value in shown.items())


class TopKMLP(nn.Module):
    """An MLP of one hidden layer with ReLU, of which each token keeps k entries.

    Args:
        width: Inputs, and outputs.
        hidden: Hidden units.
        k: How many of them each token computes with; None keeps all: a plain ReLU MLP.
        bias: Whether both matrices have one.

    Raises:
        InvalidValue: If k is not a whole number from 1 to `hidden`.

    Example:
        >>> import torch
        >>> layer = TopKMLP(4, 16, k=3)
        >>> layer(torch.ones(2, 5, 4)).shape, int((layer.hidden(torch.ones(4)) != 0).sum()) <= 3
        (torch.Size([2, 5, 4]), True)
    """

    def __init__(self, width: int, hidden: int, k: int | None = None, *, bias: bool = True) -> None:
        super().__init__()
        if k is not None:
            kept_of(hidden, k, None, "this MLP")
        self.first = nn.Linear(width, hidden, bias=bias)
        self.activation: nn.Module = nn.ReLU() if k is None else TopKActivation(nn.ReLU(), k=k)
        self.second = nn.Linear(hidden, width, bias=bias)

    def hidden(self, x: Tensor) -> Tensor:
        """Returns the activation (..., hidden) of inputs (..., width)."""
        return self.activation(self.first(x))

    def forward(self, x: Tensor) -> Tensor:
        """Returns (..., width)."""
        return self.second(self.hidden(x))


def check_replacement(name: str | None) -> None:
    """Raises UnknownName unless the name is in `REPLACEMENTS` or None."""
    if name is not None and name not in REPLACEMENTS:
        raise UnknownName("activation", str(name), REPLACEMENTS)


def replaced_by(activation: nn.Module, replacement: str | None) -> nn.Module:
    """Returns the activation to be used: the same where it is of the class already."""
    if replacement is None or isinstance(activation, REPLACEMENTS[replacement]):
        return activation
    return REPLACEMENTS[replacement]().train(activation.training)
