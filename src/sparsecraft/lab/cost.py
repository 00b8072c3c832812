"""What a training cost: operations over its schedule, memory, and what its masks went through.

The handbook of Liu and Wang (2023) asks that two sparse methods are compared by the operations of
the whole training and not by the sparsity at its end. Each step counts a forward pass, a backward
pass to the inputs and one to the weights, each at the density in force at that step; a step that
takes the gradient of pruned weights too, as RigL's updates do, has a dense pass to the weights.

The operations are those of a perfect sparse kernel. Here a masked dense product does the work, and
dense weights are stored beside their mask: every figure of a sparse training is a simulated one.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsecraft.core.errors import InvalidValue
from sparsecraft.lab.machine import peak_memory_bytes
from sparsecraft.model.flops import FlopProfile
from sparsecraft.model.targets import Target
from sparsecraft.model.training_report import Event

SIMULATED = "simulated: a masked dense product does the work, and dense weights are stored"
_REFERENCES, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass(frozen=True, kw_only=True)
class TrainingFlops:
    """Operations of a whole training, two to a multiply-add, and those of the dense one.

    Args:
        forward: Of the forward passes.
        backward_input: Of the gradients that are handed on.
        backward_weight: Of the gradients of the weights, dense where pruned ones get theirs too.
        teacher: Of the forward passes of a dense teacher.
        dense: Of the same steps without zeros and without a teacher.
    """

    forward: float
    backward_input: float
    backward_weight: float
    teacher: float
    dense: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.forward + self.backward_input + self.backward_weight + self.teacher

    @property
    def relative(self) -> float:
        """The total as a fraction of the dense training."""
        return self.total / self.dense if self.dense else 1.0

    def to_json(self) -> dict[str, float]:
        """Returns it as plain values."""
        return {**asdict(self), "total": self.total, "relative": self.relative}


def training_flops(
    profile: FlopProfile,
    targets: Sequence[Target],
    history: Sequence[Event],
    steps: int,
    *,
    passes: int = 1,
    live: bool = False,
    teacher: bool = False,
) -> TrainingFlops:
    """Returns the operations of a training, integrated over its schedule.

    Args:
        profile: Of one forward pass on a batch as it was trained on.
        targets: Whose densities the history gives.
        history: In order of steps. An event's densities hold from its step on; its dense gradient
            was taken in the step that ended there. Empty for a dense training.
        steps: Optimiser steps that were taken.
        passes: Batches in a step: accumulated ones times processes.
        live: Whether masked weights train on, so that all gradients of weights are dense.
        teacher: Whether a dense teacher answers for every batch.

    Example:
        >>> from sparsecraft.model.flops import profile_flops
        >>> profile = profile_flops(nn.Linear(8, 4), torch.zeros(3, 8))
        >>> training_flops(profile, [], [], steps=10).relative
        1.0

    Reference:
        Evci et al., 2020, arXiv 1911.11134, appendix H; Liu, Wang, 2023, arXiv 2302.02596.
    """
    full = float(profile.total)
    spans = list(_spans(history, steps))
    dense_steps = {event.step for event in history if event.dense_gradient and event.step <= steps}
    forward = weights = 0.0
    for first, last, densities in spans:
        sparse = float(profile.effective(parameter_densities(targets, densities, profile.sizes)))
        count = last - first
        dense = count if live else sum(first < step <= last for step in dense_steps)
        forward += sparse * count
        weights += sparse * (count - dense) + full * dense
    return TrainingFlops(
        forward=passes * forward,
        backward_input=passes * forward,
        backward_weight=passes * weights,
        teacher=passes * full * steps if teacher else 0.0,
        dense=3 * passes * full * steps,
    )


def parameter_densities(
    targets: Iterable[Target], densities: Mapping[str, float], sizes: Mapping[str, int]
) -> dict[str, float]:
    """Returns the densities by parameter of densities by target; parts without one are dense.

    Args:
        targets: Their sizes and the parameters that they are part of.
        densities: By target name.
        sizes: Entries by parameter name.
    """
    missing: dict[str, float] = defaultdict(float)
    for target in targets:
        missing[target.parameter] += (1 - densities.get(target.name, 1.0)) * target.numel
    return {name: 1 - gone / sizes[name] for name, gone in missing.items() if name in sizes}


def mean_density(targets: Sequence[Target], densities: Mapping[str, float]) -> float:
    """Returns the share of all targeted weights that is in force."""
    total = sum(target.numel for target in targets)
    kept = sum(densities.get(target.name, 1.0) * target.numel for target in targets)
    return kept / total if total else 1.0


@dataclass(frozen=True, kw_only=True)
class MaskPath:
    """What the masks of a training went through.

    Args:
        itop: Share of the targeted weights that was active at some step; see `TrainingReport`.
        updates: How often a mask changed.
        churn: Mean share of the targeted weights that changed at such an update.
        jaccard: Weights kept both at first and at last, as a share of those kept at either; None
            where the training began dense.
        effective_density: Share of the targeted weights that is kept and lies on a path of kept
            weights from input to output; None where that cannot be told.
    """

    itop: float
    updates: int
    churn: float
    jaccard: float | None
    effective_density: float | None

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values."""
        return asdict(self)


def churn(history: Sequence[Event], numel: int) -> tuple[int, float]:
    """Returns how often a mask changed, and the mean share of the weights that did.

    Args:
        history: Of the training.
        numel: Targeted weights.
    """
    changed = [event.changed for event in history if event.changed]
    return len(changed), sum(changed) / (len(changed) * numel) if changed and numel else 0.0


def jaccard(first: Mapping[str, Tensor], last: Mapping[str, Tensor]) -> float | None:
    """Returns the overlap of two masks: kept in both over kept in either; None without a mask.

    Example:
        >>> jaccard({"w": torch.tensor([True, True])}, {"w": torch.tensor([True, False])})
        0.5
    """
    names = [name for name in first if name in last]
    if not names:
        return None
    both = sum(int((first[name] & last[name]).sum()) for name in names)
    either = sum(int((first[name] | last[name]).sum()) for name in names)
    return both / either if either else 1.0


class PeakMemory:
    """Measures the most memory that this process, or its accelerator, holds inside the block.

    Attributes:
        bytes: The peak, after the block.
        exact: Whether it is that of the block alone. Without Linux the process's peak so far is
            all that is known, so that later blocks may show an earlier one's.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device if device is not None and device.type == "cuda" else None
        self.bytes = 0
        self.exact = False

    def __enter__(self) -> PeakMemory:
        if self.device is not None:
            torch.cuda.reset_peak_memory_stats(self.device)
            self.exact = True
        elif sys.platform == "linux":
            try:
                _REFERENCES.write_text("5")  # sets the peak of resident memory to the present
                self.exact = True
            except OSError:
                self.exact = False
        return self

    def __exit__(self, *_: object) -> None:
        if self.device is not None:
            self.bytes = int(torch.cuda.max_memory_allocated(self.device))
        else:
            self.bytes = (_resident_peak() if self.exact else 0) or peak_memory_bytes()


def stored_bytes(model: nn.Module, optimizer: Optimizer, masks: Mapping[str, Tensor]) -> int:
    """Returns the bytes of weights, gradients, moments and masks: what any training must hold.

    Activations are not in it. Masked weights are, since they are stored densely here.

    Args:
        model: With its gradients as after a backward pass.
        optimizer: After a step.
        masks: One byte an entry, as they are held.
    """
    parameters = list(model.parameters())
    tensors = [*parameters, *model.buffers(), *masks.values()]
    gradients = sum(p.nbytes for p in parameters if p.requires_grad)
    moments = sum(
        value.nbytes
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    )
    return sum(tensor.nbytes for tensor in tensors) + gradients + moments


def _spans(history: Sequence[Event], steps: int) -> Iterable[tuple[int, int, Mapping[str, float]]]:
    """Yields (first step, step after the last, densities in force), without empty spans."""
    if any(after.step < before.step for before, after in pairwise(history)):
        raise InvalidValue("the history of a training must be in the order of its steps")
    begin, densities = 0, dict[str, float]()
    for event in history:
        end = min(event.step, steps)
        if end > begin:
            yield begin, end, densities
            begin = end
        densities = dict(event.densities)
    if steps > begin:
        yield begin, steps, densities


def _resident_peak() -> int:
    """Returns the peak of resident memory since it was last reset, or 0 where it is not told."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return 0
