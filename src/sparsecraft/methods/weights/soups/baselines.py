"""What a sparse soup is compared with: predictions averaged, and independent runs averaged."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue, check_sparsity
from sparsecraft.core.mask import Mask
from sparsecraft.methods.weights.soups.averaging import State, union_soup
from sparsecraft.methods.weights.soups.bench import Recalibrate, check_recalibrated
from sparsecraft.methods.weights.soups.outcome import SoupOutcome
from sparsecraft.model.shrink import shrink
from sparsecraft.model.targets import find_targets


class PredictionEnsemble(nn.Module):
    """Averages the class probabilities of several models; as many forward passes as models.

    Args:
        model: The architecture; it stays as it is.
        state_dicts: One for each member.

    Example:
        >>> net = nn.Linear(1, 2)
        >>> ensemble = PredictionEnsemble(net, [net.state_dict()] * 2)
        >>> x = torch.ones(1, 1)
        >>> bool(torch.allclose(ensemble(x).exp(), net(x).softmax(-1)))
        True
    """

    def __init__(self, model: nn.Module, state_dicts: Sequence[State]) -> None:
        super().__init__()
        if not state_dicts:
            raise InvalidValue("an ensemble needs at least 1 member, but none was given")
        self.members = nn.ModuleList(copy.deepcopy(model) for _ in state_dicts)
        for member, state in zip(self.members, state_dicts, strict=True):
            member.load_state_dict(state)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Returns the logarithm of the mean probabilities (..., classes), which act as logits."""
        outputs = [member(*args, **kwargs) for member in self.members]
        logits = [out if isinstance(out, Tensor) else out.logits for out in outputs]
        logs = torch.stack([each.log_softmax(-1) for each in logits])
        return logs.logsumexp(0) - math.log(len(self.members))


def imp_average(
    model: nn.Module,
    runs: Sequence[SoupOutcome],
    recalibrate: Recalibrate | None = None,
) -> Mask:
    """Makes the model the average of independently pruned ones (IMP-AVG); returns what is alive.

    Args:
        model: The architecture; its weights are replaced.
        runs: Of `SparseModelSoup(models=1)` from different seeds.
        recalibrate: Gathers the statistics of batch normalisation anew.

    Returns:
        The union of the masks: the density of the average.
    """
    check_recalibrated(model, recalibrate)
    state, union = union_soup([run.state for run in runs], [run.mask for run in runs])
    model.load_state_dict(state)
    if recalibrate is not None:
        recalibrate(model)
    return union


def reprune(
    model: nn.Module,
    sparsity: float,
    before: Mask,
    recalibrate: Recalibrate | None = None,
    targets: str | None = None,
) -> Mask:
    """Prunes an average of independent runs back to a sparsity (IMP-RePrune), without retraining.

    Args:
        model: Pruned in place.
        sparsity: Fraction of the targeted weights that is zero afterwards.
        before: The mask so far, of `imp_average`.
        recalibrate: Gathers the statistics of batch normalisation anew.
        targets: Which layers; see `find_targets`.
    """
    density = 1 - check_sparsity(sparsity)
    mask = shrink(model, find_targets(model, targets), before, density)
    mask.apply_(dict(model.named_parameters()))
    if recalibrate is not None:
        recalibrate(model)
    return mask
