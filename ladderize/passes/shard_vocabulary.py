"""The part of `ShardBranches` outside of the branches: embedding, head and loss.

before   x0 = embedding(w, ids);    z = linear(x, w);   loss = cross_entropy(z, labels);  return z
after    x0 = wait(reduce(embed_rows(w_local, ids, first)));
         z = linear(copy(x), w_local);  loss = vocab_cross_entropy(z, labels, first);
         return gather(z, first)
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch.fx import Graph, Node

from ladderize.graph import parallel_ops
from ladderize.graph.insert import insert_after
from ladderize.sharding.logits import read_loss
from ladderize.sharding.vocabulary import Gather, Lookup, Loss, Vocabulary


@dataclass(frozen=True)
class ShardVocabulary:
    """Insert the collectives of a `Vocabulary`; its other calls are rewrites and entries.

    Attributes:
        vocabulary: vocabulary edits of the plan.
        num_ranks, group_name: number of ranks, and name of their group.
        first: graph inputs with the start of this rank's part, by name.
    """

    vocabulary: Vocabulary
    num_ranks: int
    group_name: str
    first: Mapping[str, Node]

    def apply(self, graph: Graph) -> None:
        for lookup in self.vocabulary.lookups:
            self._look_up(graph, lookup)
        for loss in self.vocabulary.losses:
            self._lose(loss)
        for gather in self.vocabulary.gathers:
            self._gather(graph, gather)

    def _look_up(self, graph: Graph, lookup: Lookup) -> None:
        node, readers = lookup.node, list(lookup.node.users)
        weight, ids, padding_idx = (*node.args, -1)[:3]
        node.target = parallel_ops.embed_rows
        node.args, node.kwargs = (weight, ids, self.first[lookup.index], padding_idx), {}
        launch = insert_after(graph, node, parallel_ops.reduce, (node, self.group_name))
        total = insert_after(graph, launch, parallel_ops.wait, (launch,))
        for reader in readers:
            reader.replace_input_with(node, total)

    def _lose(self, loss: Loss) -> None:
        logits, target, _, reduction, ignore_index, _ = read_loss(loss.node)
        loss.node.target = parallel_ops.vocab_cross_entropy
        first = self.first[loss.index]
        loss.node.args = (logits, target, first, reduction, ignore_index, self.group_name)

    def _gather(self, graph: Graph, gather: Gather) -> None:
        first, ranks = self.first[gather.index], (self.num_ranks, self.group_name)
        args = (gather.node, first, gather.dim, *ranks)
        whole = insert_after(graph, gather.node, parallel_ops.gather, args)
        for user in gather.users:
            user.replace_input_with(gather.node, whole)
