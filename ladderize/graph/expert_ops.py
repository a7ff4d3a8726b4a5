"""Ops for ranks that hold whole experts: they select the entries of this rank's experts.

    entries of experts 0 0 1 2 2 2 3    ends 2 3 6 7    rank 1 of 2 holds experts 2 and 3: first 2

    own_ends(ends, first, 2)            3 4               ends within the rank's own 4 entries
    take_own(x, ends, first, 2)         x[3] x[4] x[5] x[6] 0 0 0
    put_own(y, ends, first, 2)          0 0 0 y[0] y[1] y[2] y[3]

An entry is a token paired with one of its experts. Every rank has all entries, so nothing is
exchanged: entries of other ranks are 0, and the ranks' results are summed. No size depends on
values. The ops do not contain the rank: `first`, a tensor with one element, is the index of the
rank's first expert. The ops are CompositeImplicitAutograd, so autograd decomposes them.
"""

import torch
from torch import Tensor

from ladderize.compat.dispatcher import define_composite_ops


def _bounds(ends: Tensor, first: Tensor, count: int) -> Tensor:
    """The start of the entries of this rank's experts, then the end of each expert's entries."""
    padded = torch.nn.functional.pad(ends, (1, 0))
    return padded.index_select(0, first + torch.arange(count + 1, device=ends.device))


def _own_ends(ends: Tensor, first: Tensor, count: int) -> Tensor:
    bounds = _bounds(ends, first, count)
    return (bounds[1:] - bounds[:1]).to(ends.dtype)


def _take_own(x: Tensor, ends: Tensor, first: Tensor, count: int) -> Tensor:
    bounds = _bounds(ends, first, count)
    place = torch.arange(x.shape[0], device=x.device)
    is_own = place < bounds[-1:] - bounds[:1]
    # A grouped product leaves the rows after its last end, and their gradients, undefined.
    return x.index_select(0, (place + bounds[:1]) % x.shape[0]).masked_fill(~is_own[:, None], 0)


def _put_own(y: Tensor, ends: Tensor, first: Tensor, count: int) -> Tensor:
    bounds = _bounds(ends, first, count)
    place = torch.arange(y.shape[0], device=y.device) - bounds[:1]
    is_own = (place >= 0) & (place < bounds[-1:] - bounds[:1])
    return y.index_select(0, place % y.shape[0]).masked_fill(~is_own[:, None], 0)


def _own_numbers(experts: Tensor, first: Tensor, count: int) -> Tensor:
    """Local indices of `experts` on this rank; an arbitrary local index for other experts."""
    return (experts - first).clamp(0, count - 1)


def _mask_by_ends(x: Tensor, ends: Tensor, first: Tensor, count: int, dim: int) -> Tensor:
    """`x` with 0 for the entries along `dim` that belong to other ranks' experts."""
    bounds = _bounds(ends, first, count)
    place = torch.arange(x.shape[dim], device=x.device)
    return _mask(x, (place >= bounds[:1]) & (place < bounds[-1:]), dim)


def _mask_by_numbers(x: Tensor, experts: Tensor, first: Tensor, count: int, dim: int) -> Tensor:
    return _mask(x, (experts >= first) & (experts < first + count), dim)


def _mask(x: Tensor, is_own: Tensor, dim: int) -> Tensor:
    shape = [-1 if d == dim else 1 for d in range(x.ndim)]
    return x.masked_fill(~is_own.view(shape), 0)


_OPS = (
    ("own_ends(Tensor ends, Tensor first, int count) -> Tensor", _own_ends),
    ("take_own(Tensor x, Tensor ends, Tensor first, int count) -> Tensor", _take_own),
    ("put_own(Tensor y, Tensor ends, Tensor first, int count) -> Tensor", _put_own),
    ("own_numbers(Tensor experts, Tensor first, int count) -> Tensor", _own_numbers),
    (
        "mask_by_ends(Tensor x, Tensor ends, Tensor first, int count, int dim) -> Tensor",
        _mask_by_ends,
    ),
    (
        "mask_by_numbers(Tensor x, Tensor experts, Tensor first, int count, int dim) -> Tensor",
        _mask_by_numbers,
    ),
)
_library = define_composite_ops(_OPS)

own_ends = torch.ops.ladderize.own_ends.default
take_own = torch.ops.ladderize.take_own.default
put_own = torch.ops.ladderize.put_own.default
own_numbers = torch.ops.ladderize.own_numbers.default
mask_by_ends = torch.ops.ladderize.mask_by_ends.default
mask_by_numbers = torch.ops.ladderize.mask_by_numbers.default
