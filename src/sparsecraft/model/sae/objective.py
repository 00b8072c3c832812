"""What a training step minimises: squared errors, the activation's losses, an auxiliary loss.

The squared error is summed over the entries of a row and averaged over rows, as in the papers whose
penalties' weights are known. Nested dictionaries (Matryoshka) are decoded segment by segment, each
entry of the code once.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsecraft.core.code import Code
from sparsecraft.core.errors import InvalidValue, MissingStatistic
from sparsecraft.core.kinds import CodeStep, Elementwise
from sparsecraft.kernels.codes import decode
from sparsecraft.kernels.codes.encoder import Precision
from sparsecraft.model.sae.auxiliary import Auxiliary, AuxiliaryStep
from sparsecraft.model.sae.checks import check_targets
from sparsecraft.model.sae.direct import ranks_rows
from sparsecraft.model.sae.row_scaling import RowScaling

if TYPE_CHECKING:
    from sparsecraft.model.sae.autoencoder import SparseAutoencoder


@dataclass(frozen=True)
class Objective:
    """The losses of one batch, and what was computed on the way.

    Args:
        parts: Weighted losses by name; "reconstruction" always.
        u: (rows, d_sae) pre-activations, without a graph; None where nothing looks at them.
        z: The code.
        inner: (rows, d_in), what was encoded.
        gradient: (rows, d_out) of the model's loss with respect to `target`, or None.
        target: (rows, d_out).
        reconstruction: (rows, d_out).
    """

    parts: dict[str, Tensor]
    u: Tensor | None
    z: Tensor | Code
    inner: Tensor
    gradient: Tensor | None
    target: Tensor
    reconstruction: Tensor

    @property
    def total(self) -> Tensor:
        """The sum of the parts."""
        return torch.stack(list(self.parts.values())).sum()


def objective(
    sae: SparseAutoencoder,
    x: Tensor,
    *,
    target: Tensor | None = None,
    gradient: Tensor | None = None,
    dead: Tensor | None = None,
    density: Tensor | None = None,
    warmth: float = 1.0,
    auxiliary: Auxiliary | None = None,
    prefix_loss: str = "mean",
    precision: Precision = "float32",
) -> Objective:
    """Returns the losses of a batch, with their graphs.

    Args:
        sae: In training mode where a selection over the batch is meant.
        x: (rows, d_in).
        target: (rows, d_out), or None for x itself.
        gradient: (rows, d_out) of the model's loss with respect to the target (or x), or None.
        dead: bool (d_sae,), or None for none.
        density: (d_sae,), the running share of rows in which each latent fires, or None.
        warmth: How far penalties have risen, in [0, 1].
        auxiliary: A loss for dead latents, or None.
        prefix_loss: "mean" or "sum" over nested dictionaries.
        precision: Of the product x W_enc; see `SAETraining`.

    Raises:
        MissingStatistic: If the activation needs gradients and there are none.
        InvalidValue: If a target is missing, too much, or of the wrong width.
    """
    _check(sae, target, gradient)
    scaling = RowScaling.of(x, sae.row_norm)
    inner = scaling.apply(x)
    goal = inner if target is None else scaling.apply(target)
    slope = None if gradient is None else scaling.gradient(gradient)
    dead = torch.zeros(sae.d_sae, dtype=torch.bool, device=x.device) if dead is None else dead

    u = None
    if not ranks_rows(sae.activation) or sae.activation.reads_pre_activations():
        with torch.set_grad_enabled(isinstance(sae.activation, Elementwise) or sae.unroll > 1):
            u = sae.pre_activations(inner, precision)
    z = sae.code_of(inner, gradient=slope, u=u, precision=precision)
    outputs = _outputs(sae, z, inner)
    errors = torch.stack([(goal - each).square().sum(1).mean() for each in outputs])
    parts = {"reconstruction": errors.mean() if prefix_loss == "mean" else errors.sum()}
    if u is not None:
        step = CodeStep(
            x=inner,
            target=goal,
            u=u,
            z=z,
            reconstruction=outputs[-1],
            frozen_decode=lambda code: _frozen(sae, code, inner),
            decoder=sae.decoder_rows(),
            gradient=slope,
            warmth=warmth,
            dead=dead,
        )
        parts.update(sae.activation.losses(step, sae.own))
    if auxiliary is not None:
        extra = auxiliary.loss(AuxiliaryStep(sae, inner, goal, outputs[-1], z, dead, density))
        if extra is not None:
            parts["auxiliary"] = extra
    return Objective(parts, None if u is None else u.detach(), z, inner, slope, goal, outputs[-1])


def _outputs(sae: SparseAutoencoder, z: Tensor | Code, inner: Tensor) -> list[Tensor]:
    """Returns the reconstruction by each nested dictionary, the whole one last."""
    if len(sae.prefixes) < 2:
        return [sae.reconstruct(z, inner)]
    rest = sae.b_dec if sae.W_skip is None else sae.b_dec + inner @ sae.W_skip
    weight = sae.decoder_rows()
    edges = (0, *sae.prefixes)
    parts = [_segment(z, weight, *edge) for edge in pairwise(edges)]
    return [part + rest for part in accumulate(parts)]


def _segment(z: Tensor | Code, weight: Tensor, first: int, last: int) -> Tensor:
    """Returns what the latents from `first` to before `last` add, (rows, d_out)."""
    if isinstance(z, Tensor):
        return z[:, first:last] @ weight[first:last]
    inside = (z.columns >= first) & (z.columns < last)
    before = torch.cat([inside.new_zeros(1, dtype=torch.int64), inside.cumsum(0)])
    starts = before[z.starts]
    return decode(starts, z.columns[inside], z.values[inside], weight, None)


def _frozen(sae: SparseAutoencoder, code: Tensor, inner: Tensor) -> Tensor:
    out = code @ sae.decoder_rows().detach() + sae.b_dec.detach()
    return out if sae.W_skip is None else out + inner @ sae.W_skip.detach()


def _check(sae: SparseAutoencoder, target: Tensor | None, gradient: Tensor | None) -> None:
    if sae.activation.needs_gradient and gradient is None:
        raise MissingStatistic(
            f"{type(sae.activation).__name__} selects by the gradient of the model's loss, and "
            "these activations come without: harvest them with gradients=True"
        )
    width = sae.d_in if target is None else target.shape[1]
    if width != sae.d_out:
        hint = " Give the store a target (to=...)." if target is None else ""
        raise InvalidValue(
            f"this autoencoder reconstructs {sae.d_out} entries, and what is to be reconstructed "
            f"has {width}.{hint}"
        )
    check_targets(sae, target is not None)
