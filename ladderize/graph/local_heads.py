"""The rank's part of a cache, as `ladderize` ops around the code that updates it.

    k [b, heads, new, d] ── own_heads ── cat, index_copy_, … ── all_heads ── [b, heads, all, d]
                        the cache holds [b, heads/n, all, d]

    own_heads(x, dim, n, copies, group)   forward this rank's entries of dim    backward all_gather
    all_heads(x, dim, n, copies, group)   forward all_gather      backward this rank's entries
    keep_part(x, dim, site)    in a sharded graph: x, then zeros up to the full size
    kept_part(x, dim, site)    in a sharded graph: x without the zeros after this rank's part

With fewer heads than ranks, `copies` neighboring ranks hold the same head.

The first two also work in eager mode. A graph sharded by heads drops them, as its `x` is the part
already (`sharding/rules/caches.py`). They know the size of a rank's part. The other two are for
parts that are decided with the graph (some channels of a convolution are sharded, others kept
whole), and can only be traced. `site` names the state, so that all graphs use one layout for it.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ladderize import compat
from ladderize.compat.dispatcher import define_composite_ops
from ladderize.errors import LadderError
from ladderize.graph.parallel_ops import gathered


class _OwnHeads(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dim: int, num_ranks: int, copies: int, group_name: str
    ) -> Tensor:
        ctx.how = dim, num_ranks, copies, group_name
        return _take(x, *ctx.how)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        return _gather(grad, *ctx.how), None, None, None, None


class _AllHeads(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dim: int, num_ranks: int, copies: int, group_name: str
    ) -> Tensor:
        ctx.how = dim, num_ranks, copies, group_name
        return _gather(x, *ctx.how)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        return _take(grad, *ctx.how), None, None, None, None


def _take(x: Tensor, dim: int, num_ranks: int, copies: int, group_name: str) -> Tensor:
    share = x.shape[dim] * copies // num_ranks
    rank = compat.process_group(group_name).rank()
    return x.narrow(dim, rank // copies * share, share).contiguous()


def _gather(x: Tensor, dim: int, num_ranks: int, copies: int, group_name: str) -> Tensor:
    """The heads of all ranks; with copies, those of the first rank that holds each."""
    every = gathered(x, dim, num_ranks, group_name)
    if copies == 1:
        return every
    firsts = torch.arange(0, num_ranks, copies, device=x.device)
    return every.index_select(dim, firsts)


def _part(x: Tensor, dim: int, site: str) -> Tensor:  # noqa: ARG001
    if compat.fake_mode_of([x]) is None:
        raise LadderError(
            "This cache belongs to a model that is sharded over a mesh; it cannot be read in eager "
            "mode.",
            cure="start with a new cache",
        )
    return x.view_as(x)


_BY_HEADS = "(Tensor x, int dim, int num_ranks, int copies, str group_name) -> Tensor"
_BY_PARTS = "(Tensor x, int dim, str site) -> Tensor"
_library = define_composite_ops(
    [
        ("own_heads" + _BY_HEADS, _OwnHeads.apply),
        ("all_heads" + _BY_HEADS, _AllHeads.apply),
        ("keep_part" + _BY_PARTS, _part),
        ("kept_part" + _BY_PARTS, _part),
    ]
)

own_heads = torch.ops.ladderize.own_heads.default
all_heads = torch.ops.ladderize.all_heads.default
keep_part = torch.ops.ladderize.keep_part.default
kept_part = torch.ops.ladderize.kept_part.default
