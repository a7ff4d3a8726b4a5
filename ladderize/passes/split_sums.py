"""Write a sum of joined streams that is cut again as a sum for each, and what is cut as itself.

    before   z = cat([c, x], 1)   y = add(z, h)              c1 = y[:, :k]            x1 = y[:, k:]
    after                         c1 = add(c, h[:, :k])      x1 = add(x, h[:, k:])

    before   z = cat([c1, x1], 1)   c = z[:, :k]
    after    z = cat([c1, x1], 1)   c = c1

So a block that text and image share is a block of either stream, as joint attention is, and the
blocks of their own that follow go on from it. Only where each part is read, and nothing else of the
sum; and where the parts are not joined again as they are, for then the sum carries one stream.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch.fx import GraphModule, Node

from ladderize import compat
from ladderize.graph import ops
from ladderize.graph.fake_values import KEYS
from ladderize.graph.ops import Kind
from ladderize.graph.pieces import CAT, Piece, joined_again, part_behind, parts_of, piece_of
from ladderize.graph.writes import written_operands
from ladderize.passes import PassResult

Path = tuple[Node, ...]
"""The views that lead to a piece: a slice; a split and its getitem."""
Parts = Mapping[Path, Node]
"""The operand of a cat that a piece of its sum is to be made of."""


@dataclass(frozen=True)
class SplitSums:
    preserves_values: ClassVar[bool] = True

    def __call__(self, gm: GraphModule) -> PassResult:
        cut, found = find_cuts(gm)
        for view, part in cut.items():
            # What is returned stays memory of its own.
            view.replace_all_uses_with(part, delete_user_cb=lambda user: user.op != "output")
        for total in found:
            _split(gm, total)
        return PassResult(len(cut) + len(found))


def find_cuts(gm: GraphModule) -> tuple[dict[Node, Node], list[Node]]:
    """The views of a cat that are its parts; the sums of joined streams that are cut again.

    Not the sums that are joined again as they are.
    """
    nodes = list(gm.graph.nodes)
    cats = [node for node in nodes if ops.op_name(node) in CAT]
    if not cats:
        return {}, []
    again = {joined_again(cat) for cat in cats}
    written = {s for node in nodes for base in written_operands(node) for s in ops.storages(base)}
    kept = {node: None for node in nodes if written.isdisjoint(ops.storages(node))}
    cut: dict[Node, Node] = {}
    for view in kept:
        part = part_behind(view)
        if part is not None and part in kept:
            cut[view] = cut.get(part, part)
    sums = [node for node in kept if _is_sum(node) and node not in again and _parts_read_of(node)]
    return cut, sums


def _parts_read_of(total: Node) -> Parts | None:
    """What is read of `total`; None unless it is each part of a cat that it adds, and no more."""
    joined = _joined_operand(total)
    parts = parts_of(joined) if joined is not None else None
    views = _views_of(total) if parts else None
    if not parts or not views:
        return None
    pieces = {view: piece_of(view, total) for view in views}
    if set(pieces.values()) != parts.keys():
        return None
    return {views[view]: parts[piece] for view, piece in pieces.items() if piece is not None}


def _split(gm: GraphModule, total: Node) -> None:
    joined, parts = _joined_operand(total), _parts_read_of(total)
    assert joined is not None
    assert parts is not None
    cutter = _Cutter(gm, total, joined)
    for path, part in parts.items():
        path[-1].replace_all_uses_with(cutter.part_of(total, path, part))
    for user in list(total.users):
        if not ops.holds_tensor(user):  # its size
            user.replace_input_with(total, joined)


def _is_sum(node: Node) -> bool:
    """A plain sum of two tensors of its shape and dtype."""
    if ops.kind(node) is not Kind.ADD or node.kwargs or len(node.all_input_nodes) != 2:
        return False
    form = _form(node)
    return form is not None and all(_form(operand) == form for operand in node.all_input_nodes)


def _form(node: Node) -> tuple[Any, ...] | None:
    value, shape = ops.value(node), ops.floating_shape(node)
    return None if shape is None else (value.dtype, *shape)


def _joined_operand(total: Node) -> Node | None:
    """The cat among the summands of `total`, through partial sums that nobody else reads."""
    for operand in total.all_input_nodes:
        if ops.op_name(operand) in CAT:
            return operand
        is_partial = _is_sum(operand) and len(operand.users) == 1
        if is_partial and (found := _joined_operand(operand)) is not None:
            return found
    return None


def _views_of(total: Node) -> dict[Node, Path] | None:
    """The pieces of `total` that are read; None where all of it is, or an unknown part."""
    found: dict[Node, Path] = {}
    stack: list[tuple[Node, Path]] = [
        (user, (user,)) for user in total.users if ops.holds_tensor(user)
    ]
    while stack:
        view, path = stack.pop()
        if ops.kind(view) is not Kind.LAYOUT or not _is_of_one_tensor(view):
            return None
        piece = piece_of(view, total)
        if piece is not None and piece != Piece():
            found[view] = path
        elif piece is None and isinstance(ops.value(view), torch.Tensor):
            return None
        else:
            stack += [(user, (*path, user)) for user in view.users]
    return found


def _is_of_one_tensor(view: Node) -> bool:
    return sum(map(ops.holds_tensor, view.all_input_nodes)) == 1


@dataclass(frozen=True)
class _Cutter:
    """Writes the sum `total` of `joined` and others part by part."""

    gm: GraphModule
    total: Node
    joined: Node
    made: dict[tuple[Node, Node], Node] = field(default_factory=dict)

    def part_of(self, node: Node, path: Path, part: Node) -> Node:
        """The sum `node`, in or of `total`: of `part` and what `path` cuts from the rest."""
        operands = {}
        for operand in node.all_input_nodes:
            if operand is self.joined:
                operands[operand] = part
            elif self._is_partial(operand):
                operands[operand] = self.part_of(operand, path, part)
            else:
                operands[operand] = self._cut(operand, path)
        return self._copy(node, operands, before=path[-1])

    def _is_partial(self, operand: Node) -> bool:
        is_alone = _is_sum(operand) and len(operand.users) == 1
        return is_alone and _joined_operand(operand) is self.joined

    def _cut(self, summand: Node, path: Path) -> Node:
        """What the views of `path` see of `summand`, where they are of `total`."""
        source, base = summand, self.total
        for step in path:
            if (summand, step) not in self.made:
                self.made[summand, step] = self._copy(step, {base: source}, before=step)
            source, base = self.made[summand, step], step
        return source

    def _copy(self, call: Node, operands: Mapping[Node, Node], before: Node) -> Node:
        with self.gm.graph.inserting_before(before):
            copied = self.gm.graph.node_copy(call, lambda node: operands.get(node, node))
        with compat.fake_mode_of([ops.value(self.total)]), torch.no_grad():
            value = _run(copied)
        copied.meta = {k: kept for k, kept in self.total.meta.items() if k != "tensor_meta"}
        copied.meta.update({key: value for key in KEYS if key in call.meta})
        return copied


def _run(call: Node) -> Any:
    args, kwargs = torch.fx.node.map_arg((call.args, call.kwargs), ops.value)
    if call.op == "call_method":
        return getattr(args[0], str(call.target))(*args[1:], **kwargs)
    assert callable(call.target)
    return call.target(*args, **kwargs)
