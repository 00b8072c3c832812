"""What several processes that train one model must agree on.

All calls do nothing in a single process. They use the default process group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.mask import pack_bits, unpack_bits


def world_size() -> int:
    """Returns how many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


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
