"""Find which part of a tensor a slice or a cat operand is, from fake values.

    z = cat([c, x], 1);   y[:, k:];  y.split([k, n], 1)[1];  y.narrow(1, k, n)

Slices, splits and the like are views. Their fake values give their start and length in the memory
of the whole, as ints or symbols. Two sizes are equal if their expressions are the same.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch.fx import Node

from ladderize.graph import ops
from ladderize.graph.ops import Kind

CAT = frozenset({"cat", "concat", "concatenate"})


@dataclass(frozen=True)
class Piece:
    """The entries from `start` to `start + length` along `dim`; `dim` None is the whole tensor."""

    dim: int | None = None
    start: Any = 0
    length: Any = 0


def piece_of(view: Node, whole: Node) -> Piece | None:
    """The piece of `whole` that `view` is; None if unknown, or if it is cut along several dims."""
    mine, all_ = ops.value(view), ops.value(whole)
    if not isinstance(mine, torch.Tensor) or not isinstance(all_, torch.Tensor):
        return None
    if ops.storages(view) != ops.storages(whole) or mine.dtype != all_.dtype:
        return None
    strides = ops.expressions(all_.stride())
    sizes, wanted = ops.expressions(mine.shape), ops.expressions(all_.shape)
    if ops.expressions(mine.stride()) != strides or len(sizes) != len(wanted):
        return None
    dims = [dim for dim, size in enumerate(sizes) if size != wanted[dim]]
    begin, offset = ops.expressions([all_.storage_offset(), mine.storage_offset()])
    if not dims:
        return Piece() if begin == offset else None
    if len(dims) > 1 or strides[dims[0]] == 0:
        return None
    start = sympy.sympify(offset - begin) / strides[dims[0]]
    return Piece(dims[0], start, sizes[dims[0]]) if start.is_integer else None


def parts_of(cat: Node) -> dict[Piece, Node] | None:
    """The operands of a concatenation, by their pieces of it; None if unknown."""
    operands = cat.args[0] if ops.op_name(cat) in CAT and cat.args else None
    if not isinstance(operands, (tuple, list)):
        return None
    shape = ops.floating_shape(cat)
    if shape is None:
        return None
    dim = _dim(cat) % len(shape)
    parts: dict[Piece, Node] = {}
    start: Any = 0
    for operand in operands:
        sizes = ops.floating_shape(operand) if isinstance(operand, Node) else None
        if sizes is None or ops.value(operand).dtype != ops.value(cat).dtype:
            return None
        if len(sizes) != len(shape):  # legacy 1-D empty tensor: an empty cache
            return None
        parts[Piece(dim, start, sizes[dim])] = operand
        start += sizes[dim]
    return parts


def run_of(piece: Piece, parts: Mapping[Piece, Node]) -> list[Node]:
    """The parts that make up `piece` of a whole, in order; empty if none do exactly."""
    found: list[Node] = []
    at, end = piece.start, piece.start + piece.length
    while at != end:
        part = next(
            (other for other in parts if other.dim == piece.dim and other.start == at), None
        )
        if part is None or part.length == 0 or len(found) == len(parts):
            return []
        found.append(parts[part])
        at += part.length
    return found


def _dim(cat: Node) -> int:
    dim = cat.kwargs.get("dim", cat.kwargs.get("axis", cat.args[1] if len(cat.args) > 1 else 0))
    assert isinstance(dim, int)
    return dim


def joined_again(cat: Node) -> Node | None:
    """The value that `cat` equals because it joins all its pieces in order; None if none."""
    parts = parts_of(cat)
    if not parts:
        return None
    first, *_ = parts.values()
    for whole in _wholes(first):
        is_equal = ops.floating_shape(whole) == ops.floating_shape(cat) and all(
            whole in _wholes(part) and piece_of(part, whole) == piece
            for piece, part in parts.items()
        )
        if is_equal and len(parts) > 1:
            return whole
    return None


def part_behind(view: Node) -> Node | None:
    """The operand of a `cat` that `view` slices out again; None if none."""
    for whole in _wholes(view):
        parts = parts_of(whole)
        piece = piece_of(view, whole) if parts else None
        if parts and piece in parts:
            return parts[piece]
    return None


def _wholes(view: Node) -> Iterator[Node]:
    """The possible base values of `view`, nearest first."""
    while ops.kind(view) is Kind.LAYOUT and ops.op_name(view) not in CAT:
        view = view.all_input_nodes[0]
        yield view
