"""Which kept weights do anything: those on a path of kept weights from the input to the output.

A neuron without incoming weights says nothing, so that its outgoing weights are dead as well, and
so on both ways (the effective sparsity of Vysogorets and Kempe, 2023). Here a flow tells: with
ones for kept weights, no biases and an input of ones, a weight is on a path exactly where the
summed output depends on it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import SparsityError
from sparsecraft.core.mask import Mask
from sparsecraft.model.context import CopyContext
from sparsecraft.model.targets import Targets


def effective_density(
    model: nn.Module, mask: Mask, targets: Targets, batch: Mapping[str, Tensor]
) -> float | None:
    """Returns the share of the targeted weights that is kept and on a path, or None.

    None stands for targets that are scales of channels, and for a network whose dense weights would
    not all be on a path by this rule, as in attention, where a sum over equal tokens hides what
    depends on queries and keys.

    Args:
        model: Any module; it is left as it was.
        mask: What is kept, by parameter name; targets without one count as dense.
        targets: The targeted weights.
        batch: One batch, for the shape of the input.

    Example:
        >>> from sparsecraft.model.targets import find_targets
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> keep = {"0.weight": torch.tensor([[True, True], [False, False]])}
        >>> effective_density(net, Mask(keep), find_targets(net), {"input": torch.ones(1, 2)})
        0.5

    Reference:
        Vysogorets, Kempe, 2023, arXiv 2107.02306; Liu, Wang, 2023, arXiv 2302.02596, lesson 9.
    """
    if any(len(target.shape) < 2 for target in targets):
        return None  # a scale belongs to a whole channel and not to a path
    plain = _plain(model)
    context = CopyContext(plain, targets, [batch], seed=0)
    shapes = {target.name: target for target in targets}
    ones = {name: torch.ones(target.matrix_shape) for name, target in shapes.items()}
    kept = {
        name: target.matrix(mask[target.parameter]).double()
        if target.parameter in mask
        else ones[name]
        for name, target in shapes.items()
    }
    try:
        if not all(bool(on.all()) for on in _on_path(context, ones).values()):
            return None
        found = _on_path(context, kept)
    except (SparsityError, RuntimeError):
        return None
    return sum(int(on.sum()) for on in found.values()) / targets.numel


def _on_path(context: CopyContext, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns which weights of one, among those of zero and one, the flow depends on."""
    scaled = {}
    for name, weight in weights.items():
        # Rows that sum to one at most keep the flow of deep and wide networks finite.
        largest = weight.double().sum(1).max().clamp(min=1.0)
        scaled[name] = (weight.double() / largest).requires_grad_()
    gradients = torch.autograd.grad(
        context.flow(scaled), list(scaled.values()), allow_unused=True, materialize_grads=True
    )
    return {
        name: (gradient != 0) & (weight != 0)
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
    }


def _plain(model: nn.Module) -> nn.Module:
    """Returns a copy in which only weights speak: no biases, means in place of maxima."""
    plain = copy.deepcopy(model).cpu().eval()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.fill_(0.0 if parameter.dim() == 1 else 1.0)
    for module in list(plain.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d):
                means = nn.AvgPool2d(
                    child.kernel_size, child.stride, child.padding, child.ceil_mode
                )
                setattr(module, name, means)
    return plain
