"""The two ends of a sharded branch, and a sharded vocabulary, as `ladderize` ops with gradients.

    op                   forward                      backward
    copy(x, group)       x                            all_reduce, wait     (Megatron's f)
    reduce(x, group)     all_reduce, still in flight  identity             (launch of Megatron's g)
    wait(pending)        wait                         identity             (the rest of g)
    embed_rows(w, ids)   rows on this rank, else 0    gradient of these rows
    gather(x, dim)       all_gather, wait             this rank's part
    vocab_cross_entropy  two all_reduces with one     softmax - one_hot of this rank's classes
                         number per token

`_c10d_functional.all_reduce` alone is wrong: its backward is another all-reduce. The ops are
CompositeImplicitAutograd and only call an `autograd.Function` or other ops. AOTAutograd traces the
functional collectives inside, forward and backward, and its cache sees an ordinary op in the graph.
The ops do not contain the rank: `first`, a tensor with one element, is the start of the rank's part
of the vocabulary.

Models sharded by hand use `copy_to_ranks` and `reduce_from_ranks`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.distributed import ProcessGroup

from ladderize.compat.dispatcher import define_composite_ops

_functional = torch.ops._c10d_functional


class _Copy(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group_name: str) -> Tensor:
        ctx.group_name = group_name
        return x.view_as(x)  # a Function must not return its input itself

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        pending = _functional.all_reduce(grad, "sum", ctx.group_name)
        return _functional.wait_tensor(pending), None


class _Reduce(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group_name: str) -> Tensor:  # noqa: ARG004
        pending: Tensor = _functional.all_reduce(x, "sum", group_name)
        return pending

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        return grad, None


class _Wait(Function):
    @staticmethod
    def forward(ctx: Any, pending: Tensor) -> Tensor:  # noqa: ARG004
        done: Tensor = _functional.wait_tensor(pending)
        return done

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ARG004
        return grad


def gathered(x: Tensor, dim: int, group_size: int, group_name: str) -> Tensor:
    """All-gather the parts of all ranks along `dim`, without autograd."""
    pending = _functional.all_gather_into_tensor(x.contiguous(), group_size, group_name)
    parts = _functional.wait_tensor(pending).view(group_size, *x.shape)
    whole: Tensor = parts.movedim(0, dim).flatten(dim, dim + 1)
    return whole


class _Gather(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, first: Tensor, dim: int, group_size: int, group_name: str
    ) -> Tensor:
        ctx.save_for_backward(first)
        ctx.dim, ctx.size = dim, x.shape[dim]
        return gathered(x, dim, group_size, group_name)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        (first,) = ctx.saved_tensors
        own = first + torch.arange(ctx.size, device=grad.device)
        return grad.index_select(ctx.dim, own), None, None, None, None


def _embed_rows(weight: Tensor, ids: Tensor, first: Tensor, padding_idx: int) -> Tensor:
    """This rank's summand of `embedding(whole weight, ids)`."""
    row = ids - first
    is_here = (row >= 0) & (row < weight.shape[0])
    found = torch.embedding(weight, row.masked_fill(~is_here, 0))
    if padding_idx >= 0:  # this row is read but gets no gradient
        is_padding = (ids == padding_idx).unsqueeze(-1)
        found = torch.where(is_padding, found.detach(), found)
    return found.masked_fill(~is_here.unsqueeze(-1), 0)


def _vocab_cross_entropy(
    logits: Tensor, target: Tensor, first: Tensor, reduction: int, ignore_index: int, group: str
) -> Tensor:
    """Megatron's vocab-parallel cross entropy (Shoeybi et al., arXiv 1909.08053, Section 3).

    Args:
        logits: logits of this rank's classes, which are dim 1, or dim 0 of a 1-D tensor.
        target: class indices, shaped like `logits` without the class dim.
        first: index of this rank's first class.
        reduction: as in ATen: 0 none, 1 mean over targets that are not ignored, 2 sum.
        ignore_index: class index of ignored targets.
        group: name of the ranks' process group.
    """
    dim = min(1, logits.ndim - 1)
    wide = logits.float() if logits.dtype.itemsize < 4 else logits
    highest = _functional.all_reduce(wide.detach().amax(dim, keepdim=True), "max", group)
    shifted = wide - _functional.wait_tensor(highest)
    place = target - first.reshape(())
    is_here = (place >= 0) & (place < logits.shape[dim])
    index = place.masked_fill(~is_here, 0).unsqueeze(dim)
    own = shifted.gather(dim, index).squeeze(dim).masked_fill(~is_here, 0)
    summed: Tensor = wait(reduce(torch.stack([shifted.exp().sum(dim), own]), group))
    is_ignored = target == ignore_index
    losses: Tensor = (summed[0].log() - summed[1]).masked_fill(is_ignored, 0).to(logits.dtype)
    if reduction == 0:
        return losses
    return losses.sum() / (~is_ignored).sum() if reduction == 1 else losses.sum()


_OPS = (
    ("copy(Tensor x, str group_name) -> Tensor", _Copy.apply),
    ("reduce(Tensor x, str group_name) -> Tensor", _Reduce.apply),
    ("wait(Tensor pending) -> Tensor", _Wait.apply),
    ("embed_rows(Tensor weight, Tensor ids, Tensor first, int padding_idx) -> Tensor", _embed_rows),
    (
        "gather(Tensor x, Tensor first, int dim, int group_size, str group_name) -> Tensor",
        _Gather.apply,
    ),
    (
        "vocab_cross_entropy(Tensor logits, Tensor target, Tensor first, int reduction,"
        " int ignore_index, str group_name) -> Tensor",
        _vocab_cross_entropy,
    ),
)
_library = define_composite_ops(_OPS)

copy = torch.ops.ladderize.copy.default
reduce = torch.ops.ladderize.reduce.default
wait = torch.ops.ladderize.wait.default
embed_rows = torch.ops.ladderize.embed_rows.default
gather = torch.ops.ladderize.gather.default
vocab_cross_entropy = torch.ops.ladderize.vocab_cross_entropy.default


def copy_to_ranks(x: Tensor, group: ProcessGroup) -> Tensor:
    """Pass a replicated tensor into a sharded branch (Megatron's f).

    Args:
        x: input of a column-parallel layer, the same on every rank.
        group: process group of the tensor-parallel ranks.

    Returns:
        `x`. Its gradient is the sum of the ranks' gradients.
    """
    copied: Tensor = copy(x, group.group_name)
    return copied


def reduce_from_ranks(x: Tensor, group: ProcessGroup) -> Tensor:
    """Sum a partial tensor over the ranks (Megatron's g).

    Args:
        x: output of a row-parallel layer, this rank's partial sum.
        group: process group of the tensor-parallel ranks.

    Returns:
        The sum, the same on every rank. The gradient of `x` is that of the sum.
    """
    summed: Tensor = wait(reduce(x, group.group_name))
    return summed
