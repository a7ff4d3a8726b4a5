"""Find the new position of a sharded dim when a tensor is viewed with another shape.

[s0, s1, 32] -> [s0, s1, 4, 8]    groups (0)(0)  (1)(1)  (2)(2 3)    32 leads to 4
[s0, 4, 2, s1, 8] -> [s0, 8, s1, 8]      (0)(0)  (1 2)(1)  …         4 leads to 8
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch

from ladderize.graph import ops


@dataclass(frozen=True)
class DimGroup:
    """Neighboring dims of the old shape and the neighboring new dims with the same product."""

    old: tuple[int, ...]
    new: tuple[int, ...]


def as_expr(size: Any) -> sympy.Expr:
    """A size of a shape, symbolic or not, as a sympy expression."""
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.sympify(size)


def product(sizes: Sequence[Any], dims: Sequence[int]) -> sympy.Expr:
    return sympy.Mul(*(as_expr(sizes[dim]) for dim in dims))


def dim_groups(old: Sequence[Any], new: Sequence[Any]) -> list[DimGroup]:
    """The finest matching of `old` and `new` dims, left to right; sizes of 1 at the end of either
    shape join the last group."""
    return list(_dim_groups(ops.expressions(old), ops.expressions(new)))


@functools.lru_cache(maxsize=1024)
def _dim_groups(old: tuple[Any, ...], new: tuple[Any, ...]) -> tuple[DimGroup, ...]:
    """`dim_groups` of ints and sympy expressions. Cached: layers repeat, and sympy is slow."""
    groups: list[DimGroup] = []
    i = j = 0
    while i < len(old) and j < len(new):
        last_i, last_j = i + 1, j + 1
        while (
            ratio := _ratio(product(old, range(i, last_i)), product(new, range(j, last_j)))
        ) != 1:
            grow_old = _is_whole(1 / ratio) or not _is_whole(ratio)
            if grow_old and last_i < len(old):
                last_i += 1
            elif last_j < len(new):
                last_j += 1
            elif last_i < len(old):
                last_i += 1
            else:
                break
        groups.append(DimGroup(tuple(range(i, last_i)), tuple(range(j, last_j))))
        i, j = last_i, last_j
    if groups and (i < len(old) or j < len(new)):
        last = groups.pop()
        rest_old, rest_new = tuple(range(i, len(old))), tuple(range(j, len(new)))
        groups.append(DimGroup(last.old + rest_old, last.new + rest_new))
    return tuple(groups)


def _ratio(a: sympy.Expr, b: sympy.Expr) -> sympy.Expr:
    return sympy.Integer(0) if b == 0 else sympy.cancel(a / b)


def _is_whole(ratio: sympy.Expr) -> bool:
    return bool(sympy.denom(ratio) == 1)
