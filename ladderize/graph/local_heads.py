"""What a rank keeps of a KV cache, as two `ladderize` ops around the code that keeps it.

    k [b, heads, new, d] ── own_heads ── cat, index_copy_, … ── all_heads ── [b, heads, all, d]
                        what the cache holds: [b, heads/n, all, d]

    own_heads(x, dim, n, group)   forward this rank's entries of dim    backward all_gather
    all_heads(x, dim, n, group)   forward all_gather                    backward this rank's entries

Each op alone is right on every rank, in eager mode too. A graph that is divided by heads needs
neither: there `x` is the part already, and the rules drop both (`sharding/rules/caches.py`).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ladderize import compat
from ladderize.compat.dispatcher import define_composite_ops

_functional = torch.ops._c10d_functional


class _OwnHeads(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, num_ranks: int, group_name: str) -> Tensor:
        ctx.how = dim, num_ranks, group_name
        return _take(x, dim, num_ranks, group_name)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _gather(grad, *ctx.how), None, None, None


class _AllHeads(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, num_ranks: int, group_name: str) -> Tensor:
        ctx.how = dim, num_ranks, group_name
        return _gather(x, dim, num_ranks, group_name)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _take(grad, *ctx.how), None, None, None


def _take(x: Tensor, dim: int, num_ranks: int, group_name: str) -> Tensor:
    share = x.shape[dim] // num_ranks
    rank = compat.process_group(group_name).rank()
    return x.narrow(dim, rank * share, share).contiguous()


def _gather(x: Tensor, dim: int, num_ranks: int, group_name: str) -> Tensor:
    pending = _functional.all_gather_into_tensor(x.contiguous(), num_ranks, group_name)
    parts = _functional.wait_tensor(pending).view(num_ranks, *x.shape)
    whole: Tensor = parts.movedim(0, dim).flatten(dim, dim + 1)
    return whole


_SIGNATURE = "(Tensor x, int dim, int num_ranks, str group_name) -> Tensor"
_library = define_composite_ops(
    [("own_heads" + _SIGNATURE, _OwnHeads.apply), ("all_heads" + _SIGNATURE, _AllHeads.apply)]
)

own_heads = torch.ops.ladderize.own_heads.default
all_heads = torch.ops.ladderize.all_heads.default
