"""Apply a `ShardPlan`: every rank's graph computes with its part of each sharded parameter.

before   h = linear(n, w1);                 y = linear(silu(h), w2, b);  x1 = add(x, y)
after    h = linear(copy(n), w1_local);     p = linear(silu(h), w2_local)
         y = add(wait(reduce(p)), b);       x1 = add(x, y)
"""

import operator
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.fx import Graph, GraphModule, Node

from ladderize import compat
from ladderize.compat.frames import mark_static
from ladderize.graph import parallel_ops
from ladderize.graph.fake_values import propagate_fakes, replace_fake
from ladderize.graph.insert import insert_after, like
from ladderize.graph.writes import written_values
from ladderize.passes import PassResult
from ladderize.passes.shard_experts import ShardExperts
from ladderize.passes.shard_vocabulary import ShardVocabulary
from ladderize.sharding.edits import BranchEntry, MixedWeight, Reduction, Rewrite
from ladderize.sharding.joint_sums import readers_before
from ladderize.sharding.placement import local_shape
from ladderize.sharding.plan import ShardPlan
from ladderize.sharding.values import LocalSize
from ladderize.sharding.visit import FORM_READERS, packet

aten = torch.ops.aten


@dataclass(frozen=True)
class ShardBranches:
    """Rewrite a graph to its rank-local form, which is the same graph on every rank.

    `ShardVocabulary` rewrites the embedding and the head, and `ShardExperts` experts that ranks
    hold whole, if they are in the plan.

    The graph gains `plan.index_inputs` as its last inputs, and takes local parts of the parameters
    in `plan.placements`. `group_name` is the name of the process group to reduce over.
    """

    plan: ShardPlan
    group_name: str
    preserves_values: ClassVar[bool] = True

    def __call__(self, gm: GraphModule) -> PassResult:
        plan = self.plan
        order = {node: i for i, node in enumerate(gm.graph.nodes)}
        indices = self._add_index_inputs(gm.graph)
        for rewrite in plan.rewrites:
            rewrite.node.target = rewrite.target
            rewrite.node.args = self._with_local_sizes(gm.graph, rewrite)
            if rewrite.kwargs is not None:
                rewrite.node.kwargs = dict(rewrite.kwargs)
        for weight in plan.mixed:
            self._mix(gm.graph, weight)
        copies: dict[Node, Node] = {}
        written = written_values(gm.graph)
        for entry in plan.entries:
            self._enter(gm.graph, entry, copies, indices, written)
        ShardExperts(plan.experts, indices).apply(gm.graph)
        means: dict[Node, Node] = {}
        for reduction in plan.reductions:
            self._reduce(gm.graph, reduction, order, means)
        ShardVocabulary(plan.vocabulary, plan.num_ranks, self.group_name, indices).apply(gm.graph)
        for node, placement in plan.parameter_nodes.items():
            replace_fake(node, local_shape(node.meta["val"].shape, placement, plan.num_ranks))
        rewritten = {
            edit.node for edits in (plan.rewrites, plan.vocabulary.edits) for edit in edits
        }
        rewritten.update(edit.node for edit in plan.experts)
        propagate_fakes(gm, {*plan.parameter_nodes, *rewritten})
        edits = (
            plan.rewrites,
            plan.entries,
            plan.mixed,
            plan.experts,
            plan.reductions,
            plan.vocabulary.edits,
            plan.parameter_nodes,
        )
        return PassResult(sum(map(len, edits)), tuple(plan.describe()))

    def _add_index_inputs(self, graph: Graph) -> dict[str, Node]:
        """Append the placeholders, with fake values on the device of the values they index."""
        selected = {entry.index: entry.value.meta["val"] for entry in self.plan.entries}
        selected |= {edit.index: edit.node.meta["val"] for edit in self.plan.experts}
        selected |= {edit.index: edit.node.meta["val"] for edit in self.plan.vocabulary.edits}
        nodes: dict[str, Node] = {}
        for index in self.plan.index_inputs:
            last = graph.find_nodes(op="placeholder")[-1]
            with graph.inserting_after(last):
                node = nodes[index.name] = graph.placeholder(index.name)
            mark_static(node)
            like = selected[index.name]
            with compat.fake_mode_of([like]):
                node.meta["val"] = like.new_empty(len(index.rows[0]), dtype=torch.int64)
        return nodes

    def _with_local_sizes(self, graph: Graph, rewrite: Rewrite) -> tuple[Any, ...]:
        """The arguments, with calls before the node that divide symbolic sizes."""

        def local(value: Any) -> Any:
            if not isinstance(value, LocalSize):
                return value
            size = graph.call_function(operator.floordiv, (value.node, self.plan.num_ranks))
            size.meta["val"] = value.node.meta["val"] // self.plan.num_ranks
            return size

        with graph.inserting_before(rewrite.node):
            return tuple(
                [local(part) for part in arg] if isinstance(arg, (list, tuple)) else local(arg)
                for arg in rewrite.args
            )

    def _mix(self, graph: Graph, mixed: MixedWeight) -> None:
        """Make the user read `cat([q, copy(k), copy(v)])` of a weight with whole k and v."""
        pieces, start = [], 0
        with graph.inserting_before(mixed.user):
            for length, is_whole in mixed.pieces:
                bounds = (mixed.dim, start, start + length)
                piece = graph.call_function(aten.slice.Tensor, (mixed.weight, *bounds))
                if is_whole:
                    piece = graph.call_function(parallel_ops.copy, (piece, self.group_name))
                pieces.append(piece)
                start += length
            whole = graph.call_function(aten.cat.default, (pieces, mixed.dim))
        for node in (*pieces, whole):
            like(node, mixed.user)
        mixed.user.replace_input_with(mixed.weight, whole)

    def _enter(
        self,
        graph: Graph,
        entry: BranchEntry,
        made: dict[Any, Node],
        indices: dict[str, Node],
        written: Collection[Node],
    ) -> None:
        """Make `entry.user` read the copied and selected form of a replicated value."""
        value = entry.value
        steps: list[tuple[Any, tuple[Any, ...]]] = []
        if entry.needs_copy:
            steps.append((parallel_ops.copy, (self.group_name,)))
        if entry.index:
            steps += _selection(entry, indices[entry.index])
        if entry.share > 1:
            steps.append((aten.div.Tensor, (entry.share,)))
        is_late = value.op == "placeholder" or value in written
        for target, args in steps:
            key = (target, value, args, entry.user if is_late else None)
            if key not in made:
                place = entry.user.prev if is_late else value
                made[key] = insert_after(graph, place, target, (value, *args))
            value = made[key]
        entry.user.replace_input_with(entry.value, value)

    def _reduce(
        self, graph: Graph, reduction: Reduction, order: dict[Node, int], means: dict[Node, Node]
    ) -> None:
        """Sum a branch over the ranks.

        Args:
            graph: graph to edit.
            reduction: reduction of the branch.
            order: positions of nodes in the graph.
            means: replacements of residual adds that are reduced as a whole.
        """
        if reduction.is_joint:
            self._reduce_each(graph, reduction.partials)
            return
        *firsts, last = sorted(reduction.partials, key=order.__getitem__)
        readers = list(last.users)
        total = last
        for partial in firsts:
            total = insert_after(graph, total, aten.add.Tensor, (partial, total))
        if reduction.sends_skip:
            means.update(self._reduce_stream(graph, reduction, total))
            return
        total = self._finish(graph, reduction, total)
        if reduction.into is None:
            for reader in readers:
                reader.replace_input_with(last, total)
            return
        skip = reduction.skip
        assert skip is not None
        with graph.inserting_before(reduction.into):
            for other in reduction.others:
                total = like(graph.call_function(aten.add.Tensor, (total, other)), last)
            skip = means.get(skip, skip)
            if reduction.copies_skip:
                call = graph.call_function(parallel_ops.copy, (skip, self.group_name))
                skip = like(call, reduction.into)
        reduction.into.args, reduction.into.kwargs = (skip, total), {}
        for reader in [user for node in reduction.unread for user in node.users]:
            if packet(reader) in FORM_READERS:  # an assert, which would keep the sum alive
                graph.erase_node(reader)

    def _reduce_each(self, graph: Graph, partials: Sequence[Node]) -> None:
        """All-reduce the partial values side by side, and move their readers behind that."""
        last = partials[-1]
        late = readers_before(partials, last)
        readers = {partial: list(partial.users) for partial in partials}
        together = insert_after(graph, last, aten.cat.default, (list(partials), -1))
        sent = insert_after(graph, together, parallel_ops.reduce, (together, self.group_name))
        place = total = insert_after(graph, sent, parallel_ops.wait, (sent,))
        for i, partial in enumerate(partials):
            place = insert_after(graph, place, aten.slice.Tensor, (total, -1, i, i + 1))
            for reader in readers[partial]:
                reader.replace_input_with(partial, place)
        for node in late:
            place.append(node)
            place = node

    def _finish(self, graph: Graph, reduction: Reduction, total: Node) -> Node:
        """Append the all-reduce of `total`, if it is sent, and the biases."""
        if reduction.is_sent:
            total = insert_after(graph, total, parallel_ops.reduce, (total, self.group_name))
            total = insert_after(graph, total, parallel_ops.wait, (total,))
        for bias in reduction.biases:
            own = (bias, self.group_name)  # each rank has a partial gradient of it
            place = total
            if not reduction.is_sent:
                bias = place = insert_after(graph, total, parallel_ops.copy, own)
            total = insert_after(graph, place, aten.add.Tensor, (total, bias))
        return total

    def _reduce_stream(self, graph: Graph, reduction: Reduction, total: Node) -> dict[Node, Node]:
        """Make the residual add sum a share of the skip, and all-reduce its result."""
        into, skip = reduction.into, reduction.skip
        assert into is not None
        readers = list(into.users)
        with graph.inserting_before(into):
            share = graph.call_function(aten.div.Tensor, (skip, self.plan.num_ranks))
        into.args, into.kwargs = (total, like(share, into)), {}
        done = self._finish(graph, reduction, into)
        for reader in readers:
            reader.replace_input_with(into, done)
        return {into: done}


def _selection(entry: BranchEntry, index: Node) -> list[tuple[Any, tuple[Any, ...]]]:
    """The calls that select a rank's entries: targets, and arguments after the first."""
    dim = entry.dim
    if not entry.inner:
        return [(aten.index_select.default, (dim, index))]
    return [  # split a merged dim, and merge it again
        (aten.unflatten.int, (dim, (-1, entry.inner))),
        (aten.index_select.default, (dim + 1, index)),
        (aten.flatten.using_ints, (dim, dim + 1)),
    ]
