"""One view of a tensor, whether it lies whole on this rank or in shards over several (FSDP2).

Methods decide on whole tensors; what they decide is written back into the part that a rank holds.
`whole` is a collective call where the tensor is sharded: every rank must make it, in one order.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from sparsecraft.model.ranks import mean_over_ranks_


def whole(tensor: Tensor) -> Tensor:
    """Returns the tensor itself, or all of it gathered where this rank holds a shard."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Returns the part that this rank holds: the tensor itself where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_of(full: Tensor, like: Tensor) -> Tensor:
    """Returns the part of a whole tensor that belongs to this rank's part of `like`.

    Args:
        full: Equal on all ranks, of the whole shape of `like`.
        like: Plain or sharded.
    """
    if not isinstance(like, DTensor):
        return full.to(like.device)
    moved = full.to(like.device)
    # Every rank has the whole already: nothing needs to be sent.
    spread = distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)
    return spread.to_local()


@torch.no_grad()
def write(tensor: Tensor, full: Tensor) -> None:
    """Writes a whole tensor into this rank's part of another."""
    target = local(tensor)
    source = part_of(full, tensor)
    if source.data_ptr() != target.data_ptr() or source.shape != target.shape:
        target.copy_(source)


def gathered(parts: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns whole tensors from what each rank collected for its part of the parameters."""
    found = {}
    for name in sorted(parts):
        parameter, part = parameters[name], parts[name]
        if isinstance(parameter, DTensor):
            spread = DTensor.from_local(
                part,
                parameter.device_mesh,
                parameter.placements,
                shape=parameter.shape,
                stride=parameter.stride(),
            )
            found[name] = spread.full_tensor()
        else:
            mean_over_ranks_([part])
            found[name] = part
    return found
