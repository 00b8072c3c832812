"""What sizes, prefixes and inputs an autoencoder accepts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsecraft.core.attribution import check_gradient
from sparsecraft.core.errors import InvalidValue, NonFinite
from sparsecraft.core.kinds import Activation, Selecting
from sparsecraft.model.ranks import world_size

if TYPE_CHECKING:
    from sparsecraft.model.sae.autoencoder import SparseAutoencoder
    from sparsecraft.model.sae.training_settings import SAETraining


def check_sizes(**sizes: int) -> None:
    """Raises InvalidValue unless each size is a whole number of at least 1."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise InvalidValue(f"{name}={size!r} is not allowed: give a whole number of at least 1")


def check_unroll(activation: Activation, unroll: int) -> None:
    """Raises InvalidValue if several steps would select over a batch.

    Rows that come alone have one threshold, and each step would need its own.
    """
    if unroll == 1 or not isinstance(activation, Selecting):
        return
    scope = activation.penalty().scope
    if scope != "token":
        raise InvalidValue(
            f"unroll={unroll}: {type(activation).__name__} selects over the {scope}, and its "
            "threshold for rows that come alone holds for one step of the encoder. Give unroll=1, "
            "or an activation that selects in each row, such as TopK."
        )


def check_micro_batch(activation: Activation, training: SAETraining) -> None:
    """Raises InvalidValue if a selection over a batch would see only pieces of it."""
    pieces, rows = training.micro_batch, training.batch // world_size()
    if pieces is None or pieces >= rows or not isinstance(activation, Selecting):
        return
    scope = activation.penalty().scope
    if scope != "token":
        raise InvalidValue(
            f"micro_batch={pieces}: {type(activation).__name__} selects over the {scope}, and "
            f"must see all {rows} rows of it. Leave micro_batch out, or give a smaller batch."
        )


def check_prefixes(prefixes: tuple[int, ...], d_sae: int) -> tuple[int, ...]:
    """Returns the latents of nested dictionaries, or raises unless they rise to d_sae."""
    if prefixes and (sorted(set(prefixes)) != list(prefixes) or prefixes[0] < 1):
        raise InvalidValue(f"prefixes={prefixes} are not allowed: give ascending numbers from 1")
    if prefixes and prefixes[-1] != d_sae:
        raise InvalidValue(
            f"prefixes={prefixes} must end with all of the dictionary, d_sae={d_sae}"
        )
    return tuple(prefixes)


def check_options(sae: SparseAutoencoder) -> None:
    """Raises InvalidValue if options contradict each other, the widths or the activation."""
    check_unroll(sae.activation, sae.unroll)
    check_transcoder(sae)


def check_transcoder(sae: SparseAutoencoder) -> None:
    """Raises InvalidValue if options contradict whether another tensor is reconstructed."""
    if sae.d_in != sae.d_out and not sae.transcoder:
        raise InvalidValue(
            f"what is read has {sae.d_in} entries and what is reconstructed {sae.d_out}, so this "
            "is a transcoder: leave transcoder=False out"
        )
    if sae.d_in != sae.d_out and sae.subtract_bias:
        raise InvalidValue(
            f"subtract_bias=True takes b_dec ({sae.d_out} entries) from what is read ({sae.d_in}): "
            "leave it out"
        )
    wrong = "tied=True" if sae.tied else f"unroll={sae.unroll}" if sae.unroll > 1 else ""
    if sae.transcoder and wrong:
        raise InvalidValue(
            f"{wrong} compares what is read with what is written, and a transcoder reads one "
            "tensor and writes another: leave it out"
        )


def check_targets(sae: SparseAutoencoder, given: bool) -> None:
    """Raises InvalidValue unless targets are given to a transcoder, and to nothing else."""
    if sae.transcoder and not given:
        raise InvalidValue(
            "this is a transcoder, which does not reconstruct what it reads: give a store with "
            "targets (to=..., or from_tensor(x, target=...))"
        )
    if given and not sae.transcoder:
        raise InvalidValue(
            "the activations come with targets to reconstruct in their place, and this autoencoder "
            "was made to reconstruct what it reads: make it with transcoder=True, or give "
            "activations without targets"
        )


def checked_gradient(sae: SparseAutoencoder, x: Tensor, gradient: Tensor) -> Tensor:
    """Returns the gradient (rows, d_out) that a code of x (..., d_in) is chosen with.

    Args:
        sae: Whose code it is.
        x: What is encoded.
        gradient: (..., d_out).

    Raises:
        InvalidValue: If the activation would ignore it, or it has another shape.
        NonFinite: For NaN or infinite values.
    """
    if not sae.activation.needs_gradient:
        raise InvalidValue(
            f"{type(sae.activation).__name__} makes its code without the gradient that was given: "
            "leave gradient out, or take an activation that selects by it, such as GradientTopK"
        )
    found = check_gradient(gradient, (*x.shape[:-1], sae.d_out))
    return found.to(sae.W_dec).reshape(-1, sae.d_out)


def check_rows(x: Tensor, d_in: int) -> None:
    """Raises if x (..., d_in) cannot be encoded.

    Raises:
        InvalidValue: For another width, an integer type or no rows.
        NonFinite: For NaN or infinite values.
    """
    if not x.is_floating_point():
        raise InvalidValue(
            f"activations of type {x.dtype} cannot be encoded: convert them to a floating type"
        )
    if x.dim() == 0 or x.shape[-1] != d_in or not x.numel():
        raise InvalidValue(
            f"activations of shape {tuple(x.shape)} were given; this autoencoder reads "
            f"(rows, {d_in}), at least one row"
        )
    if not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x)).reshape(-1, d_in).any(1).sum())
        raise NonFinite(
            f"{bad} of {x.numel() // d_in} rows have NaN or infinite values: leave them "
            "out, or find where the model makes them (half precision often does)"
        )
