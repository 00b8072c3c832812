"""The finished form of a model in training: effective weights under the final masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from sparsecraft.core.mask import Mask
from sparsecraft.model.ranks import of_first_rank
from sparsecraft.model.sharding import whole, write
from sparsecraft.model.targets import Target, assembled
from sparsecraft.model.trained_model import TrainedModel


@torch.no_grad()
def finished(trained: TrainedModel) -> tuple[dict[str, Tensor], Mask]:
    """Returns whole effective parameters by name, and the final mask; nothing is changed."""
    method, parameters = trained.method, trained.named_parameters
    raw = trained.shown()
    finals = dict(method.final_masks(raw, trained.layers, trained.clock))
    if trained.units is not None and not finals:
        finals = {name: weight != 0 for name, weight in raw.items()}
    finals = of_first_rank(finals)

    def finish(target: Target, part: Tensor) -> Tensor:
        made = method.export(part, trained.layers[target.name], trained.clock)
        keep = finals.get(target.name)
        return made if keep is None else made.masked_fill(~keep.to(made.device), 0)

    weights: dict[str, Tensor] = {}
    for target in trained.targets:
        name = target.parameter
        before = weights.get(name, whole(parameters[name]).detach())
        weights[name] = assembled(before, [target], finish)
    return weights, trained.by_parameter(finals)


def put(trained: TrainedModel, weights: Mapping[str, Tensor]) -> None:
    """Writes whole parameters by name into the model."""
    parameters = trained.named_parameters
    for name, value in weights.items():
        write(parameters[name], value)


def finish_units(trained: TrainedModel) -> None:
    """Lets the method change whole groups a last time."""
    if trained.units is None:
        return
    seen = {name: whole(p) for name, p in trained.named_parameters.items()}
    trained.method.finish_units(trained.units, seen, trained.model_state, trained.clock)
    put(trained, seen)


def notes(trained: TrainedModel, mask: Mask) -> Iterator[str]:
    """Yields what did not go as asked, and what the method says; before the weights are put."""
    yield from trained.method.remarks(trained.shown(), trained.layers, trained.clock)
    if trained.step < trained.total_steps:
        yield (
            f"finalized after {trained.step} of {trained.total_steps} steps: what the method plans "
            "for the rest did not happen"
        )
    density = getattr(trained.method, "density", None)
    if density is None:
        return
    total = trained.targets.numel
    kept = total - (mask.numel - mask.kept)
    if abs(kept - density * total) > max(1.0, len(trained.targets)):
        yield (
            f"asked sparsity {1 - density:.4f}, achieved {1 - kept / total:.4f} of the {total} "
            "targeted weights"
        )
