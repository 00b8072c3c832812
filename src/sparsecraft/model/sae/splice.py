"""Puts an autoencoder into a model: its reconstruction takes the activation's place.

Latents can be changed on the way. With x the activation, x_hat its reconstruction and delta what
the changes add, the model goes on with x_hat + delta, or, with the error kept, with x + delta: then
nothing but the changes differs from the model as it is. Special tokens and padding, on which an
autoencoder is usually not trained, are left alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.model.hook_points import HookPoint, hook_point
from sparsecraft.model.sae.estimator import evaluating
from sparsecraft.model.sae.latent_changes import LatentChanges, latent_changes

if TYPE_CHECKING:
    from sparsecraft.model.sae.autoencoder import SparseAutoencoder


@contextmanager
def spliced(
    sae: SparseAutoencoder | Mapping[str, SparseAutoencoder],
    model: nn.Module,
    at: str | None = None,
    *,
    to: str | None = None,
    edit: Mapping[Any, Any] | None = None,
    set: Mapping[Any, Any] | None = None,
    ablate: Collection[int] | Mapping[str, Collection[int]] = (),
    keep_error: bool = False,
    mask: Tensor | None = None,
    leave_alone: Collection[int] | None = None,
) -> Iterator[nn.Module]:
    """Gives the model; inside the block it runs on what the autoencoder makes of its activations.

    Blocks can be nested; the inner one sees what the outer one made. Works with `generate`.

    Args:
        sae: An autoencoder; or several, by the hook points at which they stand.
        model: The model, in place.
        at: A hook point; by default the one that the autoencoder was trained on.
        to: Where a transcoder's output goes; by default as it was trained.
        edit: Latent to what is added to its activation, or to a function of the activations (rows,)
            that returns new ones. With several autoencoders by hook point, and so the next two.
        set: Latent to the activation that it gets everywhere.
        ablate: Latents that get the activation 0.
        keep_error: Whether what the reconstruction misses is added back.
        mask: bool (contexts, tokens), True where the activation is replaced; else as below.
        leave_alone: Ids of tokens whose activations are not replaced; by default those that were
            left out of the training. What the attention mask excludes is left alone as well.

    Raises:
        UnknownName: If there is no such hook point.
        InvalidValue: For an unknown latent, one that is changed twice, or another width.

    Example:
        >>> from sparsecraft.methods.codes.topk import TopK
        >>> from sparsecraft.model.sae import SparseAutoencoder
        >>> model, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(3, 4)
        >>> sae = SparseAutoencoder(4, 16, TopK(k=2))
        >>> with spliced(sae, model, at="0", keep_error=True):
        ...     same = model(x)
        >>> torch.equal(same, model(x))
        True
    """
    parts: list[tuple[str | None, SparseAutoencoder, Any, Any, Any]]
    if isinstance(sae, Mapping):
        parts = [
            (point, one, _of(edit, point), _of(set, point), _of(ablate, point) or ())
            for point, one in sae.items()
        ]
        _check_points(sae, at, edit, set, ablate)
    else:
        parts = [(at, sae, edit, set, ablate)]
    with ExitStack() as stack:
        ids = _TokenIds(mask)
        stack.callback(model.register_forward_pre_hook(ids.note, with_kwargs=True).remove)
        stack.callback(model.register_forward_hook(ids.forget, always_call=True).remove)
        for point, one, *changes in parts:
            stack.enter_context(evaluating(one))
            splice = _Splice(
                one, latent_changes(one, *changes), keep_error, ids, _ids(one, leave_alone)
            )
            for handle in splice.attach(model, point, to):
                stack.callback(handle.remove)
        yield model


@dataclass
class _TokenIds:
    """What the model reads in the pass that is under way.

    Args:
        mask: Given by the caller: where activations are replaced.
    """

    mask: Tensor | None
    ids: Tensor | None = None
    attention: Tensor | None = None

    def note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first = args[0] if args else None
        self.ids = kwargs.get("input_ids", first)
        self.attention = kwargs.get("attention_mask")

    def forget(self, *_: Any) -> None:
        self.ids = self.attention = None

    def replaced(self, x: Tensor, left_alone: Sequence[int], name: str) -> Tensor | None:
        """Returns bool like x without its last dimension, or None where all is replaced."""
        if self.mask is not None:
            if self.mask.numel() != x[..., 0].numel():
                raise InvalidValue(
                    f"mask has the shape {tuple(self.mask.shape)}, the activation at {name} "
                    f"{tuple(x.shape)}: give one entry for each position"
                )
            return self.mask.to(x.device).bool().reshape(x.shape[:-1])
        found = self._not_special(x, left_alone, name)
        real = self._real(x)
        return found if real is None else (real if found is None else real & found)

    def _not_special(self, x: Tensor, left_alone: Sequence[int], name: str) -> Tensor | None:
        if not left_alone:
            return None
        ids = self.ids
        whole = isinstance(ids, Tensor) and not ids.is_floating_point()
        if not whole or ids is None or ids.numel() != x[..., 0].numel():
            raise InvalidValue(
                f"{name}: special tokens are to be left alone, but the model was not called with "
                "token ids for each position: give mask=, or leave_alone=() to replace all"
            )
        special = torch.tensor(left_alone, device=ids.device, dtype=ids.dtype)
        return ~torch.isin(ids, special).to(x.device).reshape(x.shape[:-1])

    def _real(self, x: Tensor) -> Tensor | None:
        """Returns where there is no padding; with a cache the mask covers the past too."""
        attention = self.attention
        if not isinstance(attention, Tensor) or attention.dim() != 2:
            return None
        positions = x[..., 0].numel() // len(attention)
        if positions > attention.shape[1] or positions * len(attention) != x[..., 0].numel():
            return None
        now = attention[:, attention.shape[1] - positions :].bool().to(x.device)
        return None if bool(now.all()) else now.reshape(x.shape[:-1])


@dataclass
class _Splice:
    """One autoencoder at its place."""

    sae: SparseAutoencoder
    changes: LatentChanges
    keep_error: bool
    ids: _TokenIds
    left_alone: tuple[int, ...]
    read: list[Tensor] = field(default_factory=list)

    def attach(self, model: nn.Module, at: str | None, to: str | None) -> list[Any]:
        """Returns the handles of the hooks."""
        name = at or self.sae.info.get("hook")
        if not name:
            raise InvalidValue(
                "the autoencoder does not say where its activations come from: give at=, a hook "
                "point such as 'encoder.layer.3.output'"
            )
        point = hook_point(model, str(name))
        to = to or (
            self.sae.info.get("hook_out") if at in (None, self.sae.info.get("hook")) else to
        )
        if to is None:
            if self.sae.transcoder:
                raise InvalidValue(
                    f"a transcoder from {self.sae.d_in} to {self.sae.d_out} entries writes to "
                    "another place than it reads: give to="
                )
            return [point.replace(lambda x: self.written(point, x, x))]
        target = hook_point(model, str(to))

        def write(y: Tensor) -> Tensor | None:
            if not self.read:
                raise InvalidValue(
                    f"{target.name} is reached before {point.name} in the model: a transcoder "
                    "must read before it writes"
                )
            return self.written(target, self.read.pop(), y)

        def keep(x: Tensor) -> None:
            self.read[:] = [x]

        return [point.watch(keep), target.replace(write)]

    def written(self, point: HookPoint, x: Tensor, y: Tensor) -> Tensor | None:
        """Returns what takes the place of y, made of x; None if y stays as it is."""
        self._check_width(point, x, y)
        if self.keep_error and not len(self.changes.latents):
            return None
        where = self.ids.replaced(x, self.left_alone, point.name)
        rows = x.reshape(-1, self.sae.d_in) if where is None else x[where]
        if not len(rows):
            return None
        new = self._rows(rows, y.reshape(-1, self.sae.d_out) if where is None else y[where])
        if where is None:
            return new.to(y).reshape(y.shape)
        out = y.clone()
        out[where] = new.to(y)
        return out

    def _rows(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the new rows (rows, d_out)."""
        sae = self.sae
        inner, undo = sae.normalise_rows(sae.check_input(x))
        z = sae.code_of(inner)
        added = inner.new_zeros(len(x), sae.d_out)
        if len(self.changes.latents):
            directions = sae.decoder_rows()[self.changes.latents]
            added = self.changes.delta(z) @ directions
        if self.keep_error:
            # Undoing a normalisation is affine; the difference takes its shift out again.
            return y.to(inner) + undo(added) - undo(torch.zeros_like(added))
        return undo(sae.reconstruct(z, inner) + added)

    def _check_width(self, point: HookPoint, x: Tensor, y: Tensor) -> None:
        if x.shape[-1] != self.sae.d_in or y.shape[-1] != self.sae.d_out:
            raise InvalidValue(
                f"the activation at {point.name} has {x.shape[-1]} entries"
                + (f" and the one replaced {y.shape[-1]}" if y is not x else "")
                + f"; this autoencoder reads {self.sae.d_in} and writes {self.sae.d_out}"
            )


def _ids(sae: SparseAutoencoder, given: Collection[int] | None) -> tuple[int, ...]:
    found = sae.info.get("special_ids", ()) if given is None else given
    return tuple(int(token) for token in found)


def _of(changes: Any, point: str) -> Any:
    return changes.get(point) if isinstance(changes, Mapping) else None


def _check_points(sae: Mapping[str, SparseAutoencoder], at: str | None, *changes: Any) -> None:
    if at is not None:
        raise InvalidValue("several autoencoders say themselves where they stand: leave at= out")
    for change in changes:
        wrong = change if not isinstance(change, Mapping) else frozenset(change) - frozenset(sae)
        if wrong:
            raise InvalidValue(
                "with several autoencoders edit, set and ablate are given by hook point; "
                f"there are {', '.join(sae)}"
            )
