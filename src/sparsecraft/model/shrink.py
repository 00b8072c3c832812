"""Cuts a model's weights further, below a mask that it already has: one step of iterative pruning.

The count is of all targeted weights, so that after the last step exactly the sparsity asked is
there, however the steps before were rounded. What is pruned already never returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from sparsecraft.core import scores
from sparsecraft.core.errors import BudgetError, UnknownName, check_density
from sparsecraft.core.mask import Mask, count
from sparsecraft.core.seeds import generator
from sparsecraft.kernels.selection import keep_largest
from sparsecraft.model.targets import Target, Targets

Scope = Literal["global", "layer", "random"]
SCOPES: tuple[Scope, ...] = get_args(Scope)


@torch.no_grad()
def shrink(
    model: nn.Module,
    targets: Targets,
    before: Mask | None,
    density: float,
    *,
    scope: Scope = "global",
    seed: int = 0,
) -> Mask:
    """Returns the mask of the weights that stay, none of them outside the mask before.

    Args:
        model: It is only read.
        targets: What is pruned.
        before: The mask so far, or None for a dense model.
        density: Fraction of all targeted weights that stays.
        scope: "global" keeps the largest magnitudes of all layers together, "layer" the same
            fraction of each, "random" any weights, over all layers together.
        seed: For "random".

    Raises:
        NonFinite: If a targeted weight is NaN or infinite.
        BudgetError: If the mask before keeps fewer weights than asked now.
        UnknownName: If there is no such scope.
    """
    check_density(density)
    if scope not in SCOPES:
        raise UnknownName("scope", str(scope), SCOPES)
    matrices = targets.matrices(model)
    ranked = []
    for target in targets:
        weight = matrices[target.name]
        scores.check_finite(weight, f"{target.name}: the trained weight")
        score = _random(weight, target, seed) if scope == "random" else scores.magnitude(weight)
        if before is not None:
            # A survivor may be exactly zero; what is pruned must still come after it.
            kept = target.matrix(before[target.parameter]).to(score.device)
            score = score.masked_fill(~kept, -1.0)
        ranked.append(score)
    if scope == "layer":
        chosen = [keep_largest([score], count(score.numel(), density))[0] for score in ranked]
    else:
        chosen = keep_largest(ranked, count(targets.numel, density))
    _check_nested(targets, ranked, chosen)
    names = [target.name for target in targets]
    return targets.mask(model, dict(zip(names, chosen, strict=True)))


def _random(weight: Tensor, target: Target, seed: int) -> Tensor:
    draw = torch.rand(weight.shape, generator=generator(seed, "shrink", target.name))
    return draw.to(weight.device)


def _check_nested(targets: Targets, ranked: Sequence[Tensor], chosen: Sequence[Tensor]) -> None:
    for target, score, keep in zip(targets, ranked, chosen, strict=True):
        revived = int((keep & (score < 0)).sum())
        if revived:
            raise BudgetError(
                f"{target.name}: {revived} weights more are to be kept than the mask before has. "
                "A model can only be cut further; ask for a higher sparsity."
            )
