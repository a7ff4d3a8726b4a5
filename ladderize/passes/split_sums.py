"""Split sums on joined streams that are cut again into one sum for each stream.

    before   z = cat([c, x], 1)   y = add(z, h)              c1 = y[:, :k]            x1 = y[:, k:]
    after                         c1 = add(c, h[:, :k])      x1 = add(x, h[:, k:])

    before   z = cat([c1, x1], 1)   c = z[:, :k]
    after    z = cat([c1, x1], 1)   c = c1

    before   c = z[:, :k]        h = linear(z)
    after    c = z[:, :k]        h = linear(cat([c, z[:, k:]], 1))          z a graph input

A block that text and image share (joint attention) then is a block of both streams, and the later
blocks of each stream continue from it. This requires that each part, or runs of parts, are read
separately. If the parts are joined again unchanged, the sum carries one stream and stays. Readers
of the whole sum, such as the output, read the joined parts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch.fx import GraphModule, Node

from ladderize import compat
from ladderize.graph import ops
from ladderize.graph.cuts import (
    Cuts,
    Path,
    in_order,
    is_sum,
    joined_operand,
    parts_read_of,
    views_of,
)
from ladderize.graph.fake_values import KEYS
from ladderize.graph.higher_order import REGION
from ladderize.graph.pieces import CAT, joined_again
from ladderize.passes import PassResult


@dataclass(frozen=True)
class SplitSums:
    """Rewrite the `cuts` that `find_cuts` has found."""

    cuts: Cuts
    preserves_values: ClassVar[bool] = True

    def __call__(self, gm: GraphModule) -> PassResult:
        for view, part in self.cuts.views.items():
            # Outputs keep their own memory.
            view.replace_all_uses_with(part, delete_user_cb=lambda user: user.op != "output")
        for total in self.cuts.sums:
            _split(gm, total)
        for whole in self.cuts.wholes:
            _join(gm, whole)
        return PassResult(len(self.cuts))


def _split(gm: GraphModule, total: Node) -> None:
    joined, parts = joined_operand(total), parts_read_of(total)
    if joined is None or parts is None:  # its cat was already regrouped for another sum
        return
    if views_of(total)[1]:
        _join(gm, total)
    cutter = _Cutter(gm, total, joined)
    made = {tuple(run): cutter.grouped(run) for run in parts.values()}
    for path, run in parts.items():
        path[-1].replace_all_uses_with(cutter.part_of(total, path, made[tuple(run)]))
    for user in list(total.users):
        if not ops.holds_tensor(user):  # its size
            user.replace_input_with(total, joined)


def _join(gm: GraphModule, whole: Node) -> None:
    """Make the readers of `whole` read a cat of its parts, all cut before the first reader."""
    views, readers = views_of(whole)
    position = {node: i for i, node in enumerate(gm.graph.nodes)}
    first = min((reader for reader, _ in readers), key=position.__getitem__)
    cutter = _Cutter(gm, whole, whole)
    parts = {view: view for view in views}
    for view, path in views.items():
        if position[view] > position[first]:
            parts[view] = cutter.cut(whole, path, before=first)
            view.replace_all_uses_with(parts[view])
    joined = cutter.join([parts[view] for view in in_order(whole, views)], before=first)
    for reader, source in readers:
        reader.replace_input_with(source, joined)


@dataclass(frozen=True)
class _Cutter:
    """Splits the sum `total` of `joined` and other summands into parts."""

    gm: GraphModule
    total: Node
    joined: Node
    made: dict[tuple[Node, Node], Node] = field(default_factory=dict)

    def part_of(self, node: Node, path: Path, part: Node) -> Node:
        """The part of the sum `node`, `total` or inside it: `part` plus cuts of other summands."""
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
        is_alone = is_sum(operand) and len(operand.users) == 1
        return is_alone and joined_operand(operand) is self.joined

    def cut(self, summand: Node, path: Path, before: Node | None = None) -> Node:
        """Apply the views of `path`, which are views of `total`, to `summand`.

        The copies are inserted at the views, or `before` a node.
        """
        source, base = summand, self.total
        for step in path:
            if (summand, step) not in self.made:
                self.made[summand, step] = self._copy(step, {base: source}, before or step)
            source, base = self.made[summand, step], step
        return source

    def grouped(self, run: Sequence[Node]) -> Node:
        """Join a `run` of operands of `joined` into one operand."""
        if len(run) == 1:
            return run[0]
        union = self.join(run, before=self.joined)
        union = joined_again(union) or union
        left = [operand for operand in self.joined.all_input_nodes if operand not in run[1:]]
        self.joined.update_arg(0, [union if operand is run[0] else operand for operand in left])
        return union

    def join(self, parts: Sequence[Node], before: Node) -> Node:
        """Concatenate `parts`, which are adjacent in `total`."""
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
        """Set the fake value of `made`, under the keys of `like`, and the origin of `total`."""
        with compat.fake_mode_of([ops.value(self.total)]), torch.no_grad():
            value = _run(made)
        apart = {"tensor_meta", REGION}  # it may be in another region than `total`
        made.meta = {key: kept for key, kept in self.total.meta.items() if key not in apart}
        made.meta.update({key: value for key in KEYS if key in like.meta})


def _run(call: Node) -> Any:
    args, kwargs = torch.fx.node.map_arg((call.args, call.kwargs), ops.value)
    if call.op == "call_method":
        return getattr(args[0], str(call.target))(*args[1:], **kwargs)
    assert callable(call.target)
    return call.target(*args, **kwargs)
