"""The part of `ShardBranches` for experts that ranks hold whole.

before   y = grouped_mm(x, w, ends);                        z = index(y, [order])
after    y = put_own(grouped_mm(take_own(x, ends, first, 2), w_local, own_ends(ends, first, 2)),
                     ends, first, 2);                       z = index(y, [order])

before   y = bmm(w[ids], x);                                z = view(y, [tokens, 2, 32])
after    y = bmm(w_local[own_numbers(ids, first, 2)], x);   z = view(mask_by_numbers(y, …), …)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch.fx import Graph, Node

from ladderize.graph import expert_ops
from ladderize.graph.insert import insert_after, like
from ladderize.sharding.edits import ExpertEdit, ExpertLookup, ExpertProduct, OwnOnly


@dataclass(frozen=True)
class ShardExperts:
    """Insert ops that select the entries of this rank's experts.

    Attributes:
        edits: edits in graph order.
        first: graph inputs with the index of this rank's first expert, by name.
    """

    edits: Sequence[ExpertEdit]
    first: Mapping[str, Node]

    def apply(self, graph: Graph) -> None:
        for edit in self.edits:
            own = (edit.rows.teller, self.first[edit.index], edit.count)
            if isinstance(edit, ExpertProduct):
                self._multiply(graph, edit.node, own)
            elif isinstance(edit, ExpertLookup):
                self._look_up(graph, edit.node, own)
            elif isinstance(edit, OwnOnly):
                self._mask(graph, edit, own)

    def _multiply(self, graph: Graph, node: Node, own: tuple[Node, Node, int]) -> None:
        readers = list(node.users)
        x, weight, _, *rest = node.args
        with graph.inserting_before(node):
            taken = like(graph.call_function(expert_ops.take_own, (x, *own)), node)
            ends = like(graph.call_function(expert_ops.own_ends, own), node)
        node.args = (taken, weight, ends, *rest)
        put = insert_after(graph, node, expert_ops.put_own, (node, *own))
        for reader in readers:
            reader.replace_input_with(node, put)

    def _look_up(self, graph: Graph, node: Node, own: tuple[Node, Node, int]) -> None:
        with graph.inserting_before(node):
            numbers = like(graph.call_function(expert_ops.own_numbers, own), node)
        node.args = (node.args[0], [numbers])

    def _mask(self, graph: Graph, edit: OwnOnly, own: tuple[Node, Node, int]) -> None:
        by_ends = edit.rows.by_ends
        target = expert_ops.mask_by_ends if by_ends else expert_ops.mask_by_numbers
        with graph.inserting_before(edit.user):
            masked = graph.call_function(target, (edit.node, *own, edit.rows.dim))
        edit.user.replace_input_with(edit.node, like(masked, edit.user))
