"""What several processes that train one model must agree on.

All calls do nothing in a single process. They use the default process group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sparsecraft.core.errors import InvalidValue, SparsityError
from sparsecraft.core.mask import pack_bits, unpack_bits

Made = TypeVar("Made")
_JOIN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": torch.add,
    "max": torch.maximum,
    "min": torch.minimum,
}


def world_size() -> int:
    """Returns how many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Returns which of the processes this is, 0 where there is one."""
    return dist.get_rank() if world_size() > 1 else 0


def mean_over_ranks_(tensors: Iterable[Tensor]) -> None:
    """Replaces each tensor by its mean over the ranks, in place."""
    ranks = world_size()
    if ranks == 1:
        return
    for tensor in tensors:
        dist.all_reduce(tensor)
        tensor.div_(ranks)


def any_rank(flag: bool, device: torch.device) -> bool:
    """Returns whether the flag is set on any rank."""
    if world_size() == 1:
        return flag
    found = torch.tensor([int(flag)], device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return bool(found.item())


def sum_over_ranks_(counts: Tensor) -> None:
    """Replaces a tensor by its sum over the ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(counts)


def reduce_over_ranks_(statistics: Mapping[str, Tensor], how: Mapping[str, str]) -> None:
    """Replaces each statistic by its sum, maximum or minimum over the ranks, in place.

    Args:
        statistics: Tensors by name, of equal names and shapes on every rank.
        how: "sum", "max" or "min" of each.

    Raises:
        InvalidValue: If nothing is said about one.
    """
    for name in sorted(statistics):
        operation = _reduction(name, how).upper()
        if world_size() > 1:
            dist.all_reduce(statistics[name], op=getattr(dist.ReduceOp, operation))


def join_statistics(
    one: Mapping[str, Tensor], other: Mapping[str, Tensor], how: Mapping[str, str]
) -> dict[str, Tensor]:
    """Returns what two parts of a batch observed together, as `reduce_over_ranks_` does for ranks.

    Raises:
        InvalidValue: If nothing is said about one.
    """
    return {name: _JOIN[_reduction(name, how)](one[name], other[name]) for name in one}


def _reduction(name: str, how: Mapping[str, str]) -> str:
    if how.get(name) not in _JOIN:
        raise InvalidValue(
            f"the statistic {name!r} must say how ranks join it: sum, max or min, in "
            f"`reductions`; found {how.get(name)!r}"
        )
    return how[name]


def from_first_rank(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Returns the tensors of the first rank, on every rank.

    Args:
        tensors: As many, of equal shapes and types, on every rank; they are not changed.
    """
    if world_size() == 1:
        return list(tensors)
    sent = [tensor.detach().clone(memory_format=torch.contiguous_format) for tensor in tensors]
    for tensor in sent:
        dist.broadcast(tensor, src=0)
    return sent


def fail_together(make: Callable[[], Made], device: torch.device) -> Made:
    """Returns what each rank makes by itself; if one fails, all raise, and none waits for it.

    Args:
        make: Calls nothing that waits for other ranks.
        device: Of the process group's tensors.

    Raises:
        SparsityError: On the ranks that did not fail, if another did with any error.
    """
    if world_size() == 1:
        return make()
    failed = True
    try:
        made = make()
        failed = False
    finally:
        elsewhere = any_rank(failed, device)
    if elsewhere:
        raise SparsityError("another rank failed in the same step: see its error")
    return made


def of_first_rank(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the masks that the first rank decided, on every rank.

    Args:
        masks: Bool tensors by name, the same names and shapes on every rank.
    """
    if world_size() == 1:
        return dict(masks)
    decided = {}
    for name, mask in masks.items():
        bits = pack_bits(mask).to(mask.device)
        dist.broadcast(bits, src=0)
        decided[name] = unpack_bits(bits.cpu(), tuple(mask.shape)).to(mask.device)
    return decided


def by_first_rank(make: Callable[[], Made], then: Callable[[], Made], device: torch.device) -> Made:
    """Returns what the first rank makes; the others wait, then get it another way.

    Args:
        make: Called on the first rank, for example to write files.
        then: Called on the others when that is done, for example to read them.
        device: Of the process group's tensors.

    Raises:
        SparsityError: On every other rank, if the first one fails with any error.
    """
    if world_size() == 1:
        return make()
    if dist.get_rank() == 0:
        failed = True
        try:
            made = make()
            failed = False
        finally:
            any_rank(failed, device)
        return made
    if any_rank(False, device):
        raise SparsityError("rank 0 failed at what the other ranks wait for: see its error")
    return then()


def check_agreement(facts: Mapping[str, str]) -> None:
    """Raises on every rank where one of them was given something else.

    Args:
        facts: What must be equal, by name, such as the method and the masks' hash.

    Raises:
        InvalidValue: Naming what differs, with both values.
    """
    if world_size() == 1:
        return
    everywhere: list[Mapping[str, str]] = [{} for _ in range(world_size())]
    dist.all_gather_object(everywhere, dict(facts))
    for rank, theirs in enumerate(everywhere):
        for name, value in everywhere[0].items():
            if theirs.get(name) != value:
                raise InvalidValue(
                    f"ranks disagree on the {name}: rank 0 has {value}, rank {rank} has "
                    f"{theirs.get(name)}. Give every rank the same model, method, seed and steps."
                )
