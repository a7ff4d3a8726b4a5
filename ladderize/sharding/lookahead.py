"""Find where the readers of a value split one of its dims, before the value is sharded.

    y = unflatten(linear(x, w), -1, (3, 32)); z = transpose(y, 0, -2); q = select(z, 0, 0)

The 3 cannot be divided over ranks, but `select` cuts it, so `w` has to be sharded in three chunks.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.fx import Node

from ladderize.sharding.visit import packet

aten = torch.ops.aten

STEPS = 6  # from a projection to the ops that split it into heads or parts, with a margin


def cuts_by_readers(node: Node, dim: int, steps: int = STEPS) -> set[int]:
    """Entries of `dim` (not negative) at which a reader starts or ends a part."""
    size = node.meta["val"].shape[dim]
    if not steps or not isinstance(size, int):
        return set()
    found = {cut for user in node.users for cut in _cuts(user, node, dim, steps - 1)}
    return {int(cut) for cut in found} - {0, size}


def _cuts(user: Node, node: Node, dim: int, steps: int) -> Iterator[int]:
    value, op = node.meta["val"], packet(user)
    ndim, size = value.dim(), value.shape[dim]
    if op in MOVES:
        moved = MOVES[op](user, dim, ndim)
        yield from cuts_by_readers(user, moved, steps)
    elif op in (aten.select, aten.unbind) and _dim(user, 1) % ndim == dim:
        yield from range(size)
    elif op is aten.slice and _dim(user, 1) % ndim == dim:
        bounds = [bound for bound in user.args[2:4] if isinstance(bound, int)]
        yield from (min(bound + size if bound < 0 else bound, size) for bound in bounds)
    elif op in (aten.split, aten.split_with_sizes, aten.chunk) and _dim(user, 2) % ndim == dim:
        end = 0
        for part in user.meta["val"]:
            end += part.shape[dim]
            yield end


def _dim(user: Node, position: int) -> int:
    found: Any = user.args[position] if position < len(user.args) else 0
    return int(found)


def _transposed(user: Node, dim: int, ndim: int) -> int:
    a, b = _dim(user, 1) % ndim, _dim(user, 2) % ndim
    return {a: b, b: a}.get(dim, dim)


def _permuted(user: Node, dim: int, ndim: int) -> int:
    order: Any = user.args[1]
    return [d % ndim for d in order].index(dim)


def _unsqueezed(user: Node, dim: int, ndim: int) -> int:
    return dim + (_dim(user, 1) % (ndim + 1) <= dim)


def _squeezed(user: Node, dim: int, ndim: int) -> int:
    named: Any = user.args[1] if len(user.args) > 1 else list(range(ndim))
    dims = [d % ndim for d in (named if isinstance(named, (list, tuple)) else [named])]
    source: Any = user.args[0]
    gone = [d for d in dims if d < dim and source.meta["val"].shape[d] == 1]
    return dim - len(gone)


# op -> (call, dim, number of dims) -> new position of the dim
MOVES: dict[Any, Callable[[Node, int, int], int]] = {
    **dict.fromkeys((aten.contiguous, aten.clone, aten.to, aten._to_copy), lambda _, dim, __: dim),
    **dict.fromkeys((aten.transpose, aten.swapaxes, aten.swapdims), _transposed),
    aten.permute: _permuted,
    aten.unsqueeze: _unsqueezed,
    aten.squeeze: _squeezed,
}
