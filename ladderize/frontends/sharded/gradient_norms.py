"""The norm of the gradients of the full model, from the parts that each rank has.

q, k, v of a fused weight     q: a part on each rank, counted on all    k, v: whole, counted once
a norm's weight               whole, counted once
"""

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from ladderize.frontends.sharded.state import StateEntry
from ladderize.sharding.placement import Shard


def total_norm(
    module: nn.Module,
    entries: Sequence[StateEntry],
    group: dist.ProcessGroup,
    norm_type: float,
    error_if_nonfinite: bool,
) -> Tensor:
    """The norm of all gradients of the model that `module` is a part of; the same on all ranks.

    Args:
        module: module of one rank.
        entries: its tensors.
        group: ranks of the model; all of them must call this.
        norm_type, error_if_nonfinite: as in `torch.nn.utils.get_total_norm`.
    """
    parts: list[Tensor] = []
    whole: list[Tensor] = []
    for entry in entries:
        gradient = module.get_parameter(entry.name).grad if entry.kind == "parameter" else None
        if gradient is not None:
            for piece, is_whole in _pieces(entry, gradient, group.size()):
                (whole if is_whole else parts).append(piece)
    like = next(iter(module.parameters()))
    once = get_total_norm(whole, norm_type).to(like.device, torch.float64)
    own = get_total_norm(parts, norm_type).to(like.device, torch.float64)
    if norm_type == float("inf"):
        dist.all_reduce(own, dist.ReduceOp.MAX, group)
        found = torch.maximum(own, once)
    else:
        own = own**norm_type
        dist.all_reduce(own, dist.ReduceOp.SUM, group)
        found = (own + once**norm_type) ** (1 / norm_type)
    if error_if_nonfinite and not found.isfinite():
        raise RuntimeError(f"The total norm of order {norm_type} of the gradients is {found}.")
    return found.to(like.dtype)


def _pieces(entry: StateEntry, gradient: Tensor, num_ranks: int) -> Iterator[tuple[Tensor, bool]]:
    """The parts of a gradient, and whether each is the same on all ranks."""
    shard = entry.placement
    if not isinstance(shard, Shard):
        yield gradient, True
        return
    for index in range(len(shard.chunks)):
        start = shard.local_size(num_ranks, index)
        end = shard.local_size(num_ranks, index + 1)
        yield gradient.narrow(shard.dim, start, end - start), index in shard.whole
