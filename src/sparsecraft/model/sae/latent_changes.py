"""What happens to latents of an autoencoder that stands in a model: added to, set, or ablated."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparsecraft.core.code import Code
from sparsecraft.core.errors import InvalidValue

if TYPE_CHECKING:
    from sparsecraft.model.sae.autoencoder import SparseAutoencoder

Changes = Mapping[int, float | Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class LatentChanges:
    """What happens to some latents.

    Args:
        latents: int64 (changed,).
        of: For each, from its activations (rows,) to new ones.
    """

    latents: Tensor
    of: tuple[Callable[[Tensor], Tensor], ...]

    def delta(self, z: Tensor | Code) -> Tensor:
        """Returns (rows, changed): what is added to each changed latent."""
        before = _columns(z, self.latents)
        after = [change(before[:, i]) for i, change in enumerate(self.of)]
        return torch.stack(after, 1) - before


def latent_changes(
    sae: SparseAutoencoder, edit: Changes | None, fixed: Changes | None, ablate: Collection[int]
) -> LatentChanges:
    """Returns the changes of one autoencoder.

    Raises:
        InvalidValue: For a latent that does not exist, or that is changed twice.
    """
    wanted: dict[int, Callable[[Tensor], Tensor]] = {}
    values = [(latent, 0.0) for latent in ablate] + list((fixed or {}).items())
    given = [(latent, _constant(latent, value)) for latent, value in values]
    given += [(latent, _edited(latent, value)) for latent, value in (edit or {}).items()]
    for latent, change in given:
        whole = isinstance(latent, int) and not isinstance(latent, bool)
        if not whole or not 0 <= latent < sae.d_sae:
            raise InvalidValue(
                f"latent {latent!r} is not allowed: give whole numbers from 0 to {sae.d_sae - 1}"
            )
        if latent in wanted:
            raise InvalidValue(
                f"latent {latent} is changed twice: it may stand once in edit, set and ablate"
            )
        wanted[latent] = change
    device = sae.W_dec.device
    return LatentChanges(
        torch.tensor(list(wanted), dtype=torch.int64, device=device), (*wanted.values(),)
    )


def _constant(latent: Any, value: Any) -> Callable[[Tensor], Tensor]:
    number = _number("set", latent, value)
    return lambda z: torch.full_like(z, number)


def _edited(latent: Any, change: Any) -> Callable[[Tensor], Tensor]:
    if not callable(change):
        number = _number("edit", latent, change)
        return lambda z: z + number

    def checked(z: Tensor) -> Tensor:
        new = change(z)
        if not isinstance(new, Tensor) or new.shape != z.shape:
            raise InvalidValue(
                f"edit[{latent}] must return a tensor of the shape {tuple(z.shape)}, the new "
                "activations of all rows"
            )
        return new

    return checked


def _number(kind: str, latent: Any, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InvalidValue(
            f"{kind}[{latent!r}]={value!r} is no number"
            + (" and no function" if kind == "edit" else "")
        ) from None


def _columns(z: Tensor | Code, latents: Tensor) -> Tensor:
    """Returns (rows, latents): the activations of some latents."""
    if isinstance(z, Tensor):
        return z[:, latents]
    place = torch.full((z.width,), -1, dtype=torch.int64, device=latents.device)
    place[latents] = torch.arange(len(latents), device=latents.device)
    column = place[z.columns]
    chosen = column >= 0
    out = z.values.new_zeros(len(z), len(latents))
    return out.index_put((z.rows()[chosen], column[chosen]), z.values[chosen])
