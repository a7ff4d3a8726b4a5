"""Carry shardings through the branches until nothing changes any more.

A branch is walked in graph order, what unpacks its weights included. A walk stops where a rule
cannot hold as things are (`Illegal`, `NeedsReduction`, `NeedsCuts`, …); the change it asks for is
made, and every branch that reads what changed is walked again *from its first node that does so*.
Each change is monotone (bans, cuts and reductions only grow), so the walks end; the cost is linear
in depth because branches are of bounded size and meet in nothing but shared parameters.
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
    "the graph returns it; of keys and values, use_cache=False returns none, and "
    "ladderize.compile(model, mesh=mesh) divides caches whose heads the ranks divide"
)


@dataclass(frozen=True)
class Ban:
    """Parameters that stay whole, why, and the node that said so; see `Illegal`.

    Among them may be calls of `all_heads`: what a cache keeps of each rank is gathered there.

    With `parts` it is only these parts of them that every rank holds whole.
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
        branches: the blocks to divide.
        parameters: names of parameters and buffers.
        num_ranks: how many ranks to divide over.
        stacks: which weights of experts are divided by experts.
        values: the placement of each node inside a branch.
        visits: the last evaluation of each node: demands, entries, rewritten calls.
        bans: of each parameter that must stay whole.
        kept: of each parameter of which every rank holds parts whole, one for each refusal.
        whole: the ranges of those parts.
        made: how memory is made that a branch fills.
        packed: weights that are computed from packed parameters, and how these lie.
        walked: of each branch the nodes that carry shardings, in graph order.
        reduced: nodes whose partial value is reduced right there.
        biases: parameters to be added after the reduction of a partial value.
        num_visits: evaluations in all.
        num_refusals: those that a rule refused.
    """

    branches: Sequence[Block]
    parameters: Mapping[Node, str]
    num_ranks: int
    stacks: ExpertStacks = field(default_factory=ExpertStacks)
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
        """Whether something outside the branch of `node` reads it."""
        return self._outside_reader(node) is not None

    def _outside_reader(self, node: Node) -> Node | None:
        index = self._place[node][0]
        outside = (user for user in node.users if self._place.get(user, (-1, 0))[0] != index)
        return next((user for user in outside if packet(user) not in FORM_READERS), None)

    def _settle_partial(self, node: Node) -> None:
        """A partial result is reduced where it leaves; the outputs of a parallel block later."""
        block = self.branches[self._place[node][0]]
        if not (len(block.outputs) > 1 and node in block.outputs and len(node.users) == 1):
            self.reduced.add(node)

    def _check_exit(self, node: Node, value: Values) -> None:
        parts = value if isinstance(value, tuple) else (value,)
        divided = [part for part in parts if part.shard or part.is_whole or part.own]
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
        """All readers of a parameter must want it placed alike, and all must be in branches."""
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
        """What reads a part of a packed parameter wants it so."""
        for parameter in self._read(visit.node) if self.packed.placed else ():
            placed = self.packed.placed.get(parameter)
            if placed is not None and placed.shard is not None:
                visit.demands[parameter] = placed.shard

    def _read(self, node: Node) -> list[Node]:
        """The parameters that `node` reads, transposed or cast too."""
        if node not in self._reads:
            found = (stand_in(source, self.parameters) for source in node.all_input_nodes)
            self._reads[node] = list(dict.fromkeys(stood.parameter for stood in found if stood))
        return self._reads[node]

    # -- changes

    def _refuse(self, node: Node, refused: Illegal) -> None:
        """Split the experts to blame over all ranks; if there are none, ban the parameters."""
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
        assert new, f"{refused.reason}, and no parameter is to blame"
        self.record(Ban(tuple(new), refused.reason, node, refused.is_consequence, parts))
        self._forget(new)

    def record(self, ban: Ban) -> None:
        """Have the parameters of `ban`, or those parts of them, whole in all walks from now on."""
        for part in ban.parts:
            self.kept.setdefault(part.parameter, []).append(ban)
            kept = self.whole.get(part.parameter, frozenset())
            self.whole[part.parameter] = kept | {(part.start, part.start + part.length)}
        if not ban.parts:
            self.bans.update(dict.fromkeys(ban.parameters, ban))

    def _read_by(self, source: Node) -> tuple[Node, ...]:
        """What is to be visited again when `source` is to lie otherwise."""
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
        """Walk again what reads `parameters`, which are to lie otherwise."""
        for whole in [whole for p in parameters for whole in self.packed.made_from(p)]:
            self.packed.release(whole)
        users = [user for p in parameters for user in self._read_by(p) if user in self._place]
        indices = {self._place[user][0] for user in users}
        users += [memory for memory in self.made if self._place[memory][0] in indices]
        for memory in users:
            self.made.pop(memory, None)
        for user in users:  # reductions further on may not be where they were
            self.reduced.difference_update(self.owned(*self._place[user]))
        self._requeue(users)

    def _parts(self, refused: Illegal) -> tuple[Origin, ...]:
        """The culprits, if they are but parts of parameters that can stay divided elsewhere."""
        origins = [o for o in refused.culprits if isinstance(o, Origin)]
        if len(origins) < len(refused.culprits) or not all(map(self._is_part, origins)):
            return ()
        parts = (o for o in origins if o.parameter not in self.bans)
        return tuple(sorted(parts, key=lambda o: (self._order[o.parameter], o.start)))

    def _is_part(self, origin: Origin) -> bool:
        """Whether something of the parameter is left to divide when this part is whole."""
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
        """How many nodes of the graph compute with a parameter."""
        return len(self._readers[parameter])

    def name(self, source: Node) -> str:
        """What a report calls a parameter, or what is read of a cache."""
        return self.parameters.get(source) or f"the cache of {module_path(source)}"

    def owned(self, index: int, start: int = 0) -> list[Node]:
        """The nodes of branch `index` from `start` on; of those in several it owns its own."""
        nodes = self.walked[index][start:]
        return [node for node in nodes if self._place[node][0] == index]

    def placements(self) -> dict[Node, Placement]:
        """How each divided parameter lies."""
        demanded = (visit.demands for visit in self.visits.values())
        return {
            parameter: placement for demands in demanded for parameter, placement in demands.items()
        }


def _parameter(culprit: Node | Origin) -> Node:
    return culprit.parameter if isinstance(culprit, Origin) else culprit


def _readers(node: Node, parameters: Mapping[Node, str]) -> Iterator[Node]:
    """Who computes with a parameter, directly or transposed or cast."""
    for user in node.users:
        if stand_in(user, parameters) is not None:
            yield from _readers(user, parameters)
        elif packet(user) not in FORM_READERS:
            yield user
