"""Find the embedding, head and loss that can be sharded along the vocabulary.

    x0 = embedding(w, ids)                          each rank looks up its own rows, one reduction
    logits = linear(norm(x), w);  y = logits / 30   each rank computes its own columns
    loss = cross_entropy(y, labels)                 from sharded columns, without a gather
    return y                                        gathered: no rule applies

A parameter is a *vocabulary* if it is longer than wide and is only used as the weight of

    a table   the longest table that is looked up by integers from an integer input of the graph
              (positions are counted, or looked up in shorter tables), or
    a head    a product after the last block without a later product,

or both. Logits are propagated with the sharding rules of the branches. Where no rule applies,
usually at the graph's outputs, an all-gather collects the logits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch.fx import GraphModule, Node

from ladderize.errors import Blocker
from ladderize.graph.flops import flops_of
from ladderize.sharding.logits import Logits, is_integer, read_loss
from ladderize.sharding.placement import IndexInput, Shard
from ladderize.sharding.rules.products import PRODUCTS
from ladderize.sharding.undivided import Undivided, beyond_share, num_bytes
from ladderize.sharding.visit import Visit, is_tensor, op_name, packet
from ladderize.streams.block import Block

aten = torch.ops.aten


@dataclass(frozen=True)
class Edit:
    """`node` becomes a call with a collective; the index input `index` selects the rank's part."""

    node: Node
    index: str


@dataclass(frozen=True)
class Lookup(Edit):
    """`embedding(weight, ids)`: each rank looks up its own rows."""


@dataclass(frozen=True)
class Loss(Edit):
    """A cross entropy of logits that are sharded by classes."""


@dataclass(frozen=True)
class Gather(Edit):
    """`users` read `node`, sharded on `dim`, as a whole."""

    users: tuple[Node, ...]
    dim: int


@dataclass(frozen=True)
class Vocabulary:
    """The edits that shard along the vocabulary, in graph order.

    Attributes:
        placements: placements of the vocabularies, and of parameters added to the logits.
        visits: calls that compute with this rank's part of the logits.
        lookups, losses, gathers: calls with collectives.
        index_inputs: inputs with the first row of each rank, for each length of a vocabulary.
        whole: vocabularies that are not sharded, with reasons and costs.
    """

    placements: Mapping[Node, Shard] = field(default_factory=dict)
    visits: tuple[Visit, ...] = ()
    lookups: tuple[Lookup, ...] = ()
    losses: tuple[Loss, ...] = ()
    gathers: tuple[Gather, ...] = ()
    index_inputs: tuple[IndexInput, ...] = ()
    whole: tuple[Undivided, ...] = ()

    @property
    def edits(self) -> tuple[Edit, ...]:
        return (*self.lookups, *self.losses, *self.gathers)

    def describe(self) -> list[str]:
        """Lines for a report."""
        lines = [f"{edit.node}: sharded along the vocabulary" for edit in self.lookups]
        lines += [f"{edit.node}: sharded by classes" for edit in self.losses]
        return lines + [f"{edit.node}: gathered" for edit in self.gathers]


def find_vocabulary(
    gm: GraphModule, branches: Sequence[Block], parameters: Mapping[Node, str], num_ranks: int
) -> Vocabulary:
    """Find the edits of `gm`, outside of `branches`, that shard along the vocabulary. Linear."""
    found = _find_weights(gm, branches, parameters)
    whole = {w: reason for w in found if (reason := w.why_whole(parameters, num_ranks))}
    divided = [weight for weight in found if weight not in whole]
    heads = {head: weight.node for weight in divided for head in weight.heads}
    logits = Logits(gm, parameters, num_ranks, heads)
    logits.walk()
    lookups = {node: w.length for w in divided for node in w.lookups}
    losses = {node: logits.shard(read_loss(node)[0]).size for node in logits.losses}
    gathered = {node: logits.shard(node) for node in logits.gathered}
    sizes = (*lookups.values(), *losses.values(), *(shard.size for shard in gathered.values()))
    first = {size: IndexInput.first_of(size, num_ranks) for size in sizes}
    return Vocabulary(
        placements={w.node: Shard(w.dim, (w.length,)) for w in divided} | logits.placements(),
        visits=tuple(logits.visits),
        lookups=tuple(Lookup(node, first[size].name) for node, size in lookups.items()),
        losses=tuple(Loss(node, first[size].name) for node, size in losses.items()),
        gathers=tuple(
            Gather(node, first[shard.size].name, tuple(logits.gathered[node]), shard.dim)
            for node, shard in gathered.items()
        ),
        index_inputs=tuple(first.values()),
        whole=tuple(
            weight.undivided(reason, parameters, num_ranks) for weight, reason in whole.items()
        ),
    )


# ---- parameters


@dataclass(frozen=True)
class _Weight:
    """A vocabulary: the parameter, its dim with one entry per word, and its lookups and heads."""

    node: Node
    dim: int
    lookups: tuple[Node, ...]
    heads: tuple[Node, ...]

    @property
    def length(self) -> int:
        return int(self.node.meta["val"].shape[self.dim])

    def undivided(
        self, reason: Blocker, parameters: Mapping[Node, str], num_ranks: int
    ) -> Undivided:
        """The cost of keeping it whole; lookups compute nothing."""
        return Undivided(
            (reason,),
            (parameters[self.node],),
            beyond_share(num_bytes(self.node), num_ranks),
            beyond_share(sum(map(flops_of, self.heads)), num_ranks),
            is_branch=False,
        )

    def why_whole(self, parameters: Mapping[Node, str], num_ranks: int) -> Blocker | None:
        """The reason why it cannot be sharded; None if it can."""
        name, uses = parameters[self.node], (*self.lookups, *self.heads)
        if self.length % num_ranks:
            reason = f"{self.length} words cannot be divided over {num_ranks} ranks"
            return Blocker.at(uses[0], f"{name}: {reason}")
        for user in self.node.users:
            if user not in uses:
                return Blocker.at(user, f"{name} is also used by {op_name(user)}")
            if user in self.lookups and (any(user.args[3:]) or user.kwargs):
                return Blocker.at(user, f"{name}: {op_name(user)} has options without a rule")
        return None


def _find_weights(
    gm: GraphModule, branches: Sequence[Block], parameters: Mapping[Node, str]
) -> list[_Weight]:
    heads, tables = set(_heads(gm, branches)), _tables(gm, parameters)
    found: dict[Node, int] = {}
    for node in (*tables, *(node for node in gm.graph.nodes if node in heads)):
        weight, dim = _weight_of(node)
        if weight in parameters and _is_long(weight, dim):
            found.setdefault(weight, dim)
    return [
        _Weight(
            weight,
            dim,
            tuple(user for user in weight.users if _is_lookup(user) and dim == 0),
            tuple(user for user in weight.users if user in heads and _weight_of(user)[1] == dim),
        )
        for weight, dim in found.items()
    ]


def _weight_of(node: Node) -> tuple[Node, int]:
    """The weight of a lookup or a product, and its dim with one entry per word."""
    if _is_lookup(node):
        index, dim = 0, 0
    else:
        form = PRODUCTS[packet(node)]
        index, dim = form.weight, form.outputs
    weight = node.args[index]
    assert isinstance(weight, Node)
    return weight, dim % weight.meta["val"].dim()


def _is_long(weight: Node, dim: int) -> bool:
    shape = weight.meta["val"].shape
    return len(shape) == 2 and bool(shape[dim] > shape[1 - dim])


def _is_lookup(node: Node) -> bool:
    return packet(node) is aten.embedding


def _tables(gm: GraphModule, parameters: Mapping[Node, str]) -> list[Node]:
    """The lookups by integer inputs of the graph in the longest of their tables."""
    given: set[Node] = set()
    for node in gm.graph.nodes:
        is_input = node.op == "placeholder" and is_tensor(node) and node not in parameters
        if (is_input and is_integer(node)) or (
            is_tensor(node) and not given.isdisjoint(node.all_input_nodes)
        ):
            given.add(node)
    lookups = [node for node in gm.graph.nodes if _is_lookup(node) and node.args[1] in given]
    lengths = [_weight_of(node)[0].meta["val"].shape[0] for node in lookups]
    return [node for node, length in zip(lookups, lengths, strict=True) if length == max(lengths)]


def _heads(gm: GraphModule, branches: Sequence[Block]) -> list[Node]:
    """The products after the last block with a result that reaches no other product."""
    inside = {node for block in branches for node in (*block.branch, block.add)}
    heads: list[Node] = []
    leads_on: set[Node] = set()
    for node in reversed(gm.graph.nodes):
        if node in inside:
            break
        is_product = packet(node) in PRODUCTS
        if is_product and node not in leads_on:
            heads.append(node)
        if is_product or node in leads_on:
            leads_on.update(node.all_input_nodes)
    return heads
