"""Write a sum of joined streams that is cut again as a sum for each, and what is cut as itself.

    before   z = cat([c, x], 1)   y = add(z, h)              c1 = y[:, :k]            x1 = y[:, k:]
    after                         c1 = add(c, h[:, :k])      x1 = add(x, h[:, k:])

    before   z = cat([c1, x1], 1)   c = z[:, :k]
    after    z = cat([c1, x1], 1)   c = c1

    before   c = z[:, :k]        h = linear(z)
    after    c = z[:, :k]        h = linear(cat([c, z[:, k:]], 1))          z a graph input

So a block that text and image share is a block of either stream, as joint attention is, and the
blocks of their own that follow go on from it. Only where each part is read, or runs of parts as
one; and where the parts are not joined again as they are, for then the sum carries one stream.
Whoever reads all of the sum, the output for one, reads the parts joined.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch.fx import GraphModule, Node

from ladderize import compat
from ladderize.graph import ops
from ladderize.graph.fake_values import KEYS
from ladderize.graph.higher_order import REGION
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
from ladderize.passes import PassResult

Path = tuple[Node, ...]
"""The views that lead to a piece: a slice; a split and its getitem."""
Parts = Mapping[Path, Sequence[Node]]
"""The operands of a cat that a piece of its sum is to be made of."""
Readers = Sequence[tuple[Node, Node]]
"""What reads a value, and by way of which view."""


@dataclass(frozen=True)
class Cuts:
    """What there is to write otherwise in a graph.

    Attributes:
        views: of a cat, with the part of it that each is.
        sums: of joined streams, cut again.
        wholes: other values that are cut into what streams start from, and read whole by branches
            of these.
    """

    views: Mapping[Node, Node] = field(default_factory=dict)
    sums: Sequence[Node] = ()
    wholes: Sequence[Node] = ()

    def __len__(self) -> int:
        return len(self.views) + len(self.wholes) + len(self.sums)


@dataclass(frozen=True)
class SplitSums:
    """`cuts` is what `find_cuts` finds."""

    cuts: Cuts
    preserves_values: ClassVar[bool] = True

    def __call__(self, gm: GraphModule) -> PassResult:
        for view, part in self.cuts.views.items():
            # What is returned stays memory of its own.
            view.replace_all_uses_with(part, delete_user_cb=lambda user: user.op != "output")
        for total in self.cuts.sums:
            _split(gm, total)
        for whole in self.cuts.wholes:
            _join(gm, whole)
        return PassResult(len(self.cuts))


def find_cuts(gm: GraphModule) -> Cuts:
    """Not of sums that are joined again as they are."""
    nodes = list(gm.graph.nodes)
    cats = [node for node in nodes if ops.op_name(node) in CAT]
    if not cats:
        return Cuts()
    again = {joined_again(cat) for cat in cats}
    written = {s for node in nodes for base in written_operands(node) for s in ops.storages(base)}
    kept = {node: None for node in nodes if written.isdisjoint(ops.storages(node))}
    views: dict[Node, Node] = {}
    for view in kept:
        part = part_behind(view)
        if part is not None and part in kept:
            views[view] = views.get(part, part)
    whole = [node for node in kept if node not in again and node not in views]
    sums = [node for node in whole if _is_sum(node) and _parts_read_of(node)]
    others = [node for node in whole if not _is_sum(node) and _is_read_beside_parts(node)]
    return Cuts(views, sums, others)


def _is_read_beside_parts(whole: Node) -> bool:
    """Whether `whole` is cut into all its parts, and branches that are added to these read it."""
    if ops.op_name(whole) in CAT or len(whole.users) < 2 or ops.floating_shape(whole) is None:
        return False
    views, readers = _views_of(whole)
    if not readers or not _in_order(whole, views):
        return False
    sums = {user: view for view in views for user in view.users if _is_sum(user)}
    is_mixed = any(_is_mixed_from(total, view, whole) for total, view in sums.items())
    return is_mixed and _can_be_made(whole, views, readers)


def _is_mixed_from(total: Node, part: Node, whole: Node) -> bool:
    """Whether `total` adds to `part` what mixing ops made of `whole`."""
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
    """Whether what the `views` need, sizes for one, is there before the first of `readers`."""
    position = {node: i for i, node in enumerate(whole.graph.nodes)}
    first = min(position[reader] for reader, _ in readers)
    steps = {step for path in views.values() for step in path}
    needed = {source for step in steps for source in step.all_input_nodes} - steps
    return all(position[source] < first for source in needed)


def _in_order(whole: Node, views: Mapping[Node, Path]) -> list[Node]:
    """One view of each part of `whole`; none unless they make it up, each once."""
    parts = {piece: view for view in views if (piece := piece_of(view, whole)) is not None}
    shape, dims = ops.floating_shape(whole), {piece.dim for piece in parts}
    if shape is None or len(dims) != 1:
        return []
    (dim,) = dims
    assert dim is not None
    run = run_of(Piece(dim, 0, shape[dim]), parts)
    return run if len(run) == len(parts) else []


def _parts_read_of(total: Node) -> Parts | None:
    """What is read of `total`; None unless it is each part of a cat that it adds, or a run of them.

    It may be returned as well, and read whole by branches that are added to its parts.
    """
    joined = _joined_operand(total)
    parts = parts_of(joined) if joined is not None else None
    views, readers = _views_of(total) if parts else ({}, [])
    if not parts or not _in_order(total, views):
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


def _split(gm: GraphModule, total: Node) -> None:
    joined, parts = _joined_operand(total), _parts_read_of(total)
    if joined is None or parts is None:  # its cat was grouped for another sum
        return
    if _views_of(total)[1]:
        _join(gm, total)
    cutter = _Cutter(gm, total, joined)
    made = {tuple(run): cutter.grouped(run) for run in parts.values()}
    for path, run in parts.items():
        path[-1].replace_all_uses_with(cutter.part_of(total, path, made[tuple(run)]))
    for user in list(total.users):
        if not ops.holds_tensor(user):  # its size
            user.replace_input_with(total, joined)


def _join(gm: GraphModule, whole: Node) -> None:
    """Have the readers of `whole` read a cat of its parts, all cut ahead of the first of them."""
    views, readers = _views_of(whole)
    position = {node: i for i, node in enumerate(gm.graph.nodes)}
    first = min((reader for reader, _ in readers), key=position.__getitem__)
    cutter = _Cutter(gm, whole, whole)
    parts = {view: view for view in views}
    for view, path in views.items():
        if position[view] > position[first]:
            parts[view] = cutter.cut(whole, path, before=first)
            view.replace_all_uses_with(parts[view])
    joined = cutter.join([parts[view] for view in _in_order(whole, views)], before=first)
    for reader, source in readers:
        reader.replace_input_with(source, joined)


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


def _views_of(whole: Node) -> tuple[dict[Node, Path], Readers]:
    """The pieces of `whole` that are cut out of it; who else reads it, and by way of what view."""
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
                operands[operand] = self.cut(operand, path)
        return self._copy(node, operands, before=path[-1])

    def _is_partial(self, operand: Node) -> bool:
        is_alone = _is_sum(operand) and len(operand.users) == 1
        return is_alone and _joined_operand(operand) is self.joined

    def cut(self, summand: Node, path: Path, before: Node | None = None) -> Node:
        """What the views of `path` see of `summand`, where they are of `total`.

        Made where they are, or `before` a node.
        """
        source, base = summand, self.total
        for step in path:
            if (summand, step) not in self.made:
                self.made[summand, step] = self._copy(step, {base: source}, before or step)
            source, base = self.made[summand, step], step
        return source

    def grouped(self, run: Sequence[Node]) -> Node:
        """The `run` of operands of `joined` as one, which `joined` is made of then."""
        if len(run) == 1:
            return run[0]
        union = self.join(run, before=self.joined)
        union = joined_again(union) or union
        left = [operand for operand in self.joined.all_input_nodes if operand not in run[1:]]
        self.joined.update_arg(0, [union if operand is run[0] else operand for operand in left])
        return union

    def join(self, parts: Sequence[Node], before: Node) -> Node:
        """The `parts`, which follow one another in `total`, in one."""
        sizes = zip(
            *(ops.floating_shape(node) or () for node in (parts[0], self.total)), strict=True
        )
        dim = next(dim for dim, (part, whole) in enumerate(sizes) if part != whole)
        cat = next(node for node in self.gm.graph.nodes if ops.op_name(node) in CAT)
        with self.gm.graph.inserting_before(before):
            joined = self.gm.graph.call_function(cat.target, (list(parts), dim))
        self._describe(joined, cat)
        return joined

    def _copy(self, call: Node, operands: Mapping[Node, Node], before: Node) -> Node:
        with self.gm.graph.inserting_before(before):
            copied = self.gm.graph.node_copy(call, lambda node: operands.get(node, node))
        self._describe(copied, call)
        return copied

    def _describe(self, made: Node, like: Node) -> None:
        """What it is, under the keys of `like`, and that it comes from where `total` does."""
        with compat.fake_mode_of([ops.value(self.total)]), torch.no_grad():
            value = _run(made)
        apart = {"tensor_meta", REGION}  # it belongs to the region that it stands in
        made.meta = {key: kept for key, kept in self.total.meta.items() if key not in apart}
        made.meta.update({key: value for key in KEYS if key in like.meta})


def _run(call: Node) -> Any:
    args, kwargs = torch.fx.node.map_arg((call.args, call.kwargs), ops.value)
    if call.op == "call_method":
        return getattr(args[0], str(call.target))(*args[1:], **kwargs)
    assert callable(call.target)
    return call.target(*args, **kwargs)
