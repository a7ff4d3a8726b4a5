"""Propagate shardings through the branches until nothing changes.

A branch is walked in graph order, including the nodes that unpack its weights. A walk stops if a
rule cannot apply (`Illegal`, `NeedsReduction`, `NeedsCuts`, …). The requested change is made, and
every branch that reads the changed value is walked again *from its first node that reads it*.
Changes are monotone (bans, cuts and reductions only grow), so the walks terminate. The cost is
linear in depth, because branches have bounded size and only share parameters.
"""

from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from torch.fx import Node

from ladderize.errors import Blocker, LadderError, describe_origin, module_path
from ladderize.sharding.expert_stacks import ExpertStacks
from ladderize.sharding.packed_parts import PackedParts
from ladderize.sharding.placement import Placement, Replicate
from ladderize.sharding.rules.table import apply_rule
from ladderize.sharding.statics import stand_in
from ladderize.sharding.unpacked import unpacked_weights
from ladderize.sharding.values import (
    Illegal,
    NeedsCuts,
    NeedsLocal,
    NeedsReduction,
    NeedsUnpacked,
    Origin,
    Value,
    Values,
)
from ladderize.sharding.visit import FORM_READERS, Visit, op_name, packet
from ladderize.sharding.walks import walked_nodes
from ladderize.streams.block import Block

REPLICATE = Replicate()
_RETURNED = (
    "the graph returns it; for keys and values, set use_cache=False, or use "
    "ladderize.compile(model, mesh=mesh), which shards caches if the ranks divide the heads"
)


@dataclass(frozen=True)
class Ban:
    """Parameters that stay whole, with the reason and the node that refused; see `Illegal`.

    They may include calls of `all_heads`, where the ranks' parts of a cache are gathered.

    With `parts`, every rank holds only these parts of them whole.
    """

    parameters: tuple[Node, ...]
    reason: str
    node: Node
    is_consequence: bool
    parts: tuple[Origin, ...] = ()


@dataclass
class Propagation:
    """The state of the analysis; `run` fills it.

    Attributes:
        branches: blocks to shard.
        parameters: names of parameters and buffers.
        num_ranks: number of ranks.
        stacks: weights of experts that are sharded by experts.
        sums_norms: whether the ranks may sum the statistic of a norm; see `rules.norms`.
        values: placement of each node inside a branch.
        visits: last evaluation of each node: demands, entries, rewritten calls.
        bans: ban of each parameter that must stay whole.
        kept: bans of each parameter with parts that every rank holds whole.
        whole: ranges of these parts.
        cuts: positions at which parameters are cut into chunks.
        made: placements of memory that a branch creates and fills.
        packed: weights computed from packed parameters, with the placements of these.
        walked: for each branch, the nodes that carry shardings, in graph order.
        reduced: nodes with a partial value that is reduced right after them.
        biases: parameters to add after the reduction of a partial value.
        num_visits: number of rule evaluations.
        num_refusals: number of refused evaluations.
    """

    branches: Sequence[Block]
    parameters: Mapping[Node, str]
    num_ranks: int
    stacks: ExpertStacks = field(default_factory=ExpertStacks)
    sums_norms: bool = True
    values: dict[Node, Values] = field(default_factory=dict)
    visits: dict[Node, Visit] = field(default_factory=dict)
    bans: dict[Node, Ban] = field(default_factory=dict)
    kept: dict[Node, list[Ban]] = field(default_factory=dict)
    whole: dict[Node, frozenset[tuple[int, int]]] = field(default_factory=dict)
    cuts: dict[Node, frozenset[int]] = field(default_factory=dict)
    made: dict[Node, Value] = field(default_factory=dict)
    walked: list[tuple[Node, ...]] = field(default_factory=list)
    reduced: set[Node] = field(default_factory=set)
    biases: dict[Node, tuple[Node, ...]] = field(default_factory=dict)
    num_visits: int = 0
    num_refusals: int = 0

    def __post_init__(self) -> None:
        self._place: dict[Node, tuple[int, int]] = {}
        taken = {node for block in self.branches for node in block.branch}
        weights = [list(unpacked_weights(block, self.parameters)) for block in self.branches]
        self.packed = PackedParts({w.weight: w for own in weights for w in own}, self.num_ranks)
        packed = self.packed.placed
        self._placed: Mapping[Node, Values] = self.values
        self._made: Mapping[Node, Value] = self.made
        if self.packed.weights:
            self._placed = ChainMap(self.values, cast(dict[Node, Values], packed))
            self._made = ChainMap(self.made, packed)
        self.walked = [
            walked_nodes(block, taken, [node for weight in own for node in weight.nodes])
            for block, own in zip(self.branches, weights, strict=True)
        ]
        for index, nodes in enumerate(self.walked):
            for position, node in enumerate(nodes):
                self._place.setdefault(node, (index, position))
        sources = [*self.parameters, *self._place]
        self._order = {source: i for i, source in enumerate(sources)}
        self._readers = {p: tuple(_readers(p, self.parameters)) for p in self.parameters}
        self._reads: dict[Node, list[Node]] = {}
        self._dirty: dict[int, int] = {}
        self._walks = [0] * len(self.branches)

    def run(self) -> None:
        for index in range(len(self.branches)):
            self._dirty[index] = 0
            while self._dirty:
                earliest = min(self._dirty)
                self._walk(earliest, self._dirty.pop(earliest))

    # -- one walk

    def _walk(self, index: int, start: int) -> None:
        self._walks[index] += 1
        if self._walks[index] > 4 * len(self.walked[index]) + 8:
            where = describe_origin(self.branches[index].add)
            raise LadderError(f"the sharding of the branch at {where} does not converge")
        for node in self.owned(index, start):
            try:
                self._visit(node)
            except Illegal as refused:
                self._refuse(node, refused)
                return
            except NeedsReduction as needed:
                self.reduced.add(needed.value)
                self._requeue([needed.value])
                return
            except NeedsLocal as needed:
                self._make_local(node, needed)
                return
            except NeedsUnpacked as needed:
                self._unpack(node, needed)
                return
            except NeedsCuts as needed:
                self.cuts.update(needed.cuts)
                self._requeue([user for p in needed.cuts for user in self._read_by(p)])
                return

    def _visit(self, node: Node) -> None:
        self.num_visits += 1
        self.visits.pop(node, None)
        visit = Visit(
            node,
            self._placed,
            self.parameters,
            self.bans,
            self.cuts,
            self.whole,
            self.num_ranks,
            self.stacks,
            self._made,
            self.branches[self._place[node][0]].outputs,
            self.packed.weights,
            self.sums_norms,
        )
        value = apply_rule(visit)
        self._demand_packed(visit)
        self._check_demands(visit)
        if isinstance(value, Value) and value.is_partial and self._leaves(node):
            self._settle_partial(node)
        if isinstance(value, Value) and value.is_partial:
            self.biases[node] = value.biases
            self.values[node] = Value() if node in self.reduced else value
        else:
            self.reduced.discard(node)
            self.values[node] = value
            self._check_exit(node, value)
        self.visits[node] = visit

    def _leaves(self, node: Node) -> bool:
        """Whether a node outside the branch of `node` reads it."""
        return self._outside_reader(node) is not None

    def _outside_reader(self, node: Node) -> Node | None:
        index = self._place[node][0]
        outside = (user for user in node.users if self._place.get(user, (-1, 0))[0] != index)
        return next((user for user in outside if packet(user) not in FORM_READERS), None)

    def _settle_partial(self, node: Node) -> None:
        """Reduce a partial result where it leaves, but outputs of a parallel block later."""
        block = self.branches[self._place[node][0]]
        if not (len(block.outputs) > 1 and node in block.outputs and len(node.users) == 1):
            self.reduced.add(node)

    def _check_exit(self, node: Node, value: Values) -> None:
        parts = value if isinstance(value, tuple) else (value,)
        divided = [part for part in parts if part.shard or part.shared or part.is_whole or part.own]
        reader = self._outside_reader(node)
        if not divided or reader is None:
            return
        culprits = [origin for part in divided for origin in part.origins]
        if node in self.branches[self._place[node][0]].outputs:
            reason = "no second weight brings it back to the stream's size"
            raise Illegal(reason, culprits, is_consequence=True)
        if reader.op == "output":
            raise Illegal(_RETURNED, culprits)
        raise Illegal(f"{op_name(reader)} reads {node} outside of the branch", culprits)

    def _check_demands(self, visit: Visit) -> None:
        """Check that all readers of a parameter are in branches and need the same placement."""
        for parameter in self._read(visit.node):
            wanted = visit.demands.get(parameter, REPLICATE)
            for user in self._readers[parameter]:
                if user not in self._place and wanted != REPLICATE:
                    raise Illegal(
                        f"{self.parameters[parameter]} is also used outside the branches",
                        [parameter],
                    )
                other = self.visits.get(user)
                if other is None or user is visit.node:
                    continue
                if other.demands.get(parameter, REPLICATE) != wanted:
                    raise Illegal(f"{self.parameters[parameter]} is used in two ways", [parameter])

    def _demand_packed(self, visit: Visit) -> None:
        """Add the demands of readers of packed parameters."""
        for parameter in self._read(visit.node) if self.packed.placed else ():
            placed = self.packed.placed.get(parameter)
            if placed is not None and placed.shard is not None:
                visit.demands[parameter] = placed.shard

    def _read(self, node: Node) -> list[Node]:
        """The parameters that `node` reads, directly, transposed or cast."""
        if node not in self._reads:
            found = (stand_in(source, self.parameters) for source in node.all_input_nodes)
            self._reads[node] = list(dict.fromkeys(stood.parameter for stood in found if stood))
        return self._reads[node]

    # -- changes

    def _refuse(self, node: Node, refused: Illegal) -> None:
        """Split stacks of experts among the culprits over all ranks; else ban the culprits."""
        self.num_refusals += 1
        culprits = dict.fromkeys(map(_parameter, refused.culprits))
        stacks = [p for p in culprits if p in self.stacks.divided]
        for parameter in stacks:
            reason = f"{self.parameters[parameter]}: {refused.reason}"
            self.stacks.refuse(parameter, Blocker.at(node, reason))
        if stacks:
            self._forget(stacks)
        else:
            self._ban(node, refused)

    def _ban(self, node: Node, refused: Illegal) -> None:
        parts = self._parts(refused)
        new = [p for p in map(_parameter, refused.culprits) if p not in self.bans]
        new = sorted(dict.fromkeys(new), key=self._order.__getitem__)
        assert new, f"{refused.reason}, but no parameter is the cause"
        self.record(Ban(tuple(new), refused.reason, node, refused.is_consequence, parts))
        self._forget(new)

    def record(self, ban: Ban) -> None:
        """Keep the parameters of `ban`, or their parts, whole in all later walks."""
        for part in ban.parts:
            self.kept.setdefault(part.parameter, []).append(ban)
            kept = self.whole.get(part.parameter, frozenset())
            self.whole[part.parameter] = kept | {(part.start, part.start + part.length)}
        if not ban.parts:
            self.bans.update(dict.fromkeys(ban.parameters, ban))

    def _read_by(self, source: Node) -> tuple[Node, ...]:
        """The nodes to visit again when the placement of `source` changes."""
        made = [node for whole in self.packed.made_from(source) for node in whole.nodes]
        return (*self._readers.get(source, (source,)), *made)

    def _unpack(self, node: Node, needed: NeedsUnpacked) -> None:
        whole = self.packed.weights[needed.weight]
        reason = self.packed.divide(needed)
        if reason is not None:
            self._refuse(node, Illegal(reason, [whole.main]))
        self._requeue(whole.nodes)

    def _make_local(self, node: Node, needed: NeedsLocal) -> None:
        if needed.memory in self._place:
            self.made[needed.memory] = needed.value
            self._requeue([needed.memory])
        else:
            reason = f"{op_name(node)} writes divided values into memory that stays whole"
            self._refuse(node, Illegal(reason, needed.value.origins))

    def _forget(self, parameters: Sequence[Node]) -> None:
        """Walk the readers of `parameters` again, because their placements change."""
        for whole in [whole for p in parameters for whole in self.packed.made_from(p)]:
            self.packed.release(whole)
        users = [user for p in parameters for user in self._read_by(p) if user in self._place]
        indices = {self._place[user][0] for user in users}
        users += [memory for memory in self.made if self._place[memory][0] in indices]
        for memory in users:
            self.made.pop(memory, None)
        for user in users:  # later reductions may move
            self.reduced.difference_update(self.owned(*self._place[user]))
        self._requeue(users)

    def _parts(self, refused: Illegal) -> tuple[Origin, ...]:
        """The culprits if all are parts of parameters that can stay sharded; else empty."""
        origins = [o for o in refused.culprits if isinstance(o, Origin)]
        if len(origins) < len(refused.culprits) or not all(map(self._is_part, origins)):
            return ()
        parts = (o for o in origins if o.parameter not in self.bans)
        return tuple(sorted(parts, key=lambda o: (self._order[o.parameter], o.start)))

    def _is_part(self, origin: Origin) -> bool:
        """Whether the parameter can still be sharded if this part is whole."""
        cuts, ranges = self.cuts.get(origin.parameter), self.whole.get(origin.parameter, ())
        if not cuts or not origin.length or origin.repeats > 1:
            return False
        ends = sorted({0, *cuts, *(end for pair in ranges for end in pair)})
        taken = [(origin.start, origin.start + origin.length), *ranges]
        starts = [a for a in ends if not any(c <= a < d for c, d in taken)]
        return taken[0] not in ranges and bool(starts)

    def _requeue(self, nodes: Sequence[Node]) -> None:
        for node in nodes:
            if node not in self._place:
                continue
            index, position = self._place[node]
            self._dirty[index] = min(position, self._dirty.get(index, position))
            for later in self.owned(index, position):
                self.values.pop(later, None)
                self.visits.pop(later, None)

    # -- results

    def parameter(self, node: Node) -> Node | None:
        """The parameter that `node` is or stands for."""
        if node in self.packed.weights:
            return self.packed.weights[node].main
        found = stand_in(node, self.parameters)
        return None if found is None else found.parameter

    def num_readers(self, parameter: Node) -> int:
        """Number of nodes of the graph that compute with a parameter."""
        return len(self._readers[parameter])

    def name(self, source: Node) -> str:
        """The name of a parameter, or of a cache, in reports."""
        return self.parameters.get(source) or f"the cache of {module_path(source)}"

    def owned(self, index: int, start: int = 0) -> list[Node]:
        """The nodes from `start` on that branch `index` owns; each node has one owner."""
        nodes = self.walked[index][start:]
        return [node for node in nodes if self._place[node][0] == index]

    def placements(self) -> dict[Node, Placement]:
        """The placement of each sharded parameter."""
        demanded = (visit.demands for visit in self.visits.values())
        return {
            parameter: placement for demands in demanded for parameter, placement in demands.items()
        }


def _parameter(culprit: Node | Origin) -> Node:
    return culprit.parameter if isinstance(culprit, Origin) else culprit


def _readers(node: Node, parameters: Mapping[Node, str]) -> Iterator[Node]:
    """The nodes that compute with a parameter, directly, transposed or cast."""
    for user in node.users:
        if stand_in(user, parameters) is not None:
            yield from _readers(user, parameters)
        elif packet(user) not in FORM_READERS:
            yield user
