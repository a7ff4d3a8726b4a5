"""Find streams that are concatenated and sliced apart again, or enter the graph concatenated.

    z = cat([c, x], 1)   y = add(z, h)   c1 = y[:, :k]   x1 = y[:, k:]      y: a sum to split
    c = z[:, :k]   h = linear(z)              z: a whole that is read, as well as its parts

`passes/split_sums.py` rewrites them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.fx import GraphModule, Node

from ladderize.graph import ops
from ladderize.graph.ops import Kind
from ladderize.graph.pieces import (
    CAT,
    Piece,
    joined_again,
    part_behind,
    parts_of,
    piece_of,
    run_of,
)
from ladderize.graph.writes import written_operands

Path = tuple[Node, ...]
"""The views that lead to a piece: a slice, or a split and its getitem."""
Parts = Mapping[Path, Sequence[Node]]
"""For each piece of a sum, the operands of the cat that make it up."""
Readers = Sequence[tuple[Node, Node]]
"""Readers of a value, each with the view that it reads."""


@dataclass(frozen=True)
class Cuts:
    """Nodes of a graph to rewrite.

    Attributes:
        views: views of a cat, each with the operand that it equals.
        sums: sums on joined streams that are sliced apart again.
        wholes: other values that are sliced into the starts of streams, while branches of these
            streams read the whole.
    """

    views: Mapping[Node, Node] = field(default_factory=dict)
    sums: Sequence[Node] = ()
    wholes: Sequence[Node] = ()

    def __len__(self) -> int:
        return len(self.views) + len(self.wholes) + len(self.sums)


def find_cuts(gm: GraphModule) -> Cuts:
    """Find the cuts of `gm`, except sums whose slices are concatenated again unchanged."""
    nodes = list(gm.graph.nodes)
    cats = [node for node in nodes if ops.op_name(node) in CAT]
    if not cats:
        return Cuts()
    again = {joined_again(cat) for cat in cats}
    written = {s for node in nodes for base in written_operands(node) for s in ops.storages(base)}
    kept = [node for node in nodes if not written or written.isdisjoint(ops.storages(node))]
    views: dict[Node, Node] = {}
    for view in kept:
        part = part_behind(view)
        if part is not None and not (written & ops.storages(part)):
            views[view] = views.get(part, part)
    whole = [node for node in kept if node not in again and node not in views]
    sums = [node for node in whole if is_sum(node) and parts_read_of(node)]
    others = [node for node in whole if not is_sum(node) and _is_read_beside_parts(node)]
    return Cuts(views, sums, others)


def _is_read_beside_parts(whole: Node) -> bool:
    """Whether `whole` is sliced into all its parts, and branches added to them read `whole`."""
    if ops.op_name(whole) in CAT or len(whole.users) < 2 or ops.floating_shape(whole) is None:
        return False
    views, readers = views_of(whole)
    if not readers or not in_order(whole, views):
        return False
    sums = {user: view for view in views for user in view.users if is_sum(user)}
    is_mixed = any(_is_mixed_from(total, view, whole) for total, view in sums.items())
    return is_mixed and _can_be_made(whole, views, readers)


def _is_mixed_from(total: Node, part: Node, whole: Node) -> bool:
    """Whether `total` adds to `part` a value computed from `whole` by mixing ops."""
    seen: set[tuple[Node, bool]] = set()
    stack = [(operand, False) for operand in total.all_input_nodes if operand is not part]
    while stack:
        node, mixed = stack.pop()
        if node is whole and mixed:
            return True
        if (node, mixed) not in seen and node is not whole and ops.holds_tensor(node):
            seen.add((node, mixed))
            mixed = mixed or ops.kind(node) is Kind.MIX
            stack.extend((source, mixed) for source in node.all_input_nodes)
    return False


def _can_be_made(whole: Node, views: Mapping[Node, Path], readers: Readers) -> bool:
    """Whether the other inputs of `views`, such as sizes, come before the first of `readers`."""
    position = {node: i for i, node in enumerate(whole.graph.nodes)}
    first = min(position[reader] for reader, _ in readers)
    steps = {step for path in views.values() for step in path}
    needed = {source for step in steps for source in step.all_input_nodes} - steps
    return all(position[source] < first for source in needed)


def in_order(whole: Node, views: Mapping[Node, Path]) -> list[Node]:
    """One view for each part of `whole`, in order; empty unless they make it up exactly."""
    parts = {piece: view for view in views if (piece := piece_of(view, whole)) is not None}
    shape, dims = ops.floating_shape(whole), {piece.dim for piece in parts}
    if shape is None or len(dims) != 1:
        return []
    (dim,) = dims
    assert dim is not None
    run = run_of(Piece(dim, 0, shape[dim]), parts)
    return run if len(run) == len(parts) else []


def parts_read_of(total: Node) -> Parts | None:
    """The parts of `total` that are read: operands, or runs of operands, of a cat in the sum.

    None if other parts are read. `total` may also be returned, or read whole by branches that are
    added to its parts.
    """
    joined = joined_operand(total)
    parts = parts_of(joined) if joined is not None else None
    views, readers = views_of(total) if parts else ({}, [])
    if not parts or not in_order(total, views):
        return None
    is_returned = all(reader.op == "output" for reader, _ in readers)
    if not is_returned and not _is_read_beside_parts(total):
        return None
    pieces = {view: piece_of(view, total) for view in views}
    are_alike = len(set(parts.values())) < len(parts)
    runs = {view: run_of(piece, parts) for view, piece in pieces.items() if piece is not None}
    if not all(runs.values()) or (are_alike and any(len(run) > 1 for run in runs.values())):
        return None
    return {views[view]: run for view, run in runs.items()}


def is_sum(node: Node) -> bool:
    """Whether `node` is a plain sum of two tensors of its own shape and dtype."""
    if ops.kind(node) is not Kind.ADD or node.kwargs or len(node.all_input_nodes) != 2:
        return False
    form = _form(node)
    return form is not None and all(_form(operand) == form for operand in node.all_input_nodes)


def _form(node: Node) -> tuple[Any, ...] | None:
    value, shape = ops.value(node), ops.floating_shape(node)
    return None if shape is None else (value.dtype, *shape)


def joined_operand(total: Node) -> Node | None:
    """The cat among the summands of `total`, also inside partial sums without other readers."""
    for operand in total.all_input_nodes:
        if ops.op_name(operand) in CAT:
            return operand
        is_partial = is_sum(operand) and len(operand.users) == 1
        if is_partial and (found := joined_operand(operand)) is not None:
            return found
    return None


def views_of(whole: Node) -> tuple[dict[Node, Path], Readers]:
    """The views that slice pieces out of `whole`, and its other readers with the view they read."""
    found: dict[Node, Path] = {}
    others: list[tuple[Node, Node]] = []
    stack: list[tuple[Node, Path]] = [(user, ()) for user in whole.users]
    while stack:
        user, path = stack.pop()
        piece = piece_of(user, whole) if _is_view(user) else None
        if piece is not None and piece != Piece():
            found[user] = (*path, user)
        elif piece is not None or (_is_view(user) and isinstance(ops.value(user), (tuple, list))):
            stack += [(after, (*path, user)) for after in user.users]
        elif user.op == "output" or ops.holds_tensor(user):
            others.append((user, path[-1] if path else whole))
    return found, others


def _is_view(node: Node) -> bool:
    return ops.kind(node) is Kind.LAYOUT and _is_of_one_tensor(node)


def _is_of_one_tensor(view: Node) -> bool:
    return sum(map(ops.holds_tensor, view.all_input_nodes)) == 1
