"""Check the collectives of a candidate: waited for, over all ranks, and hidden behind compute.

waits     l1 = reduce(h1)   …   w1 = wait(l1)      one wait each, and no other reader
groups    reduce(h1, "ladderize")                  the group of all ranks, with the right size
hidden    l1 | linear … l2 | w1                    compute in between, after waits are deferred
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence

from torch.fx import Graph, GraphModule, Node

from ladderize.errors import LadderError, describe_origin
from ladderize.frontends.sharded.localize import GROUP
from ladderize.graph import ops, parallel_ops
from ladderize.graph.collectives import collective_of, every_node, group_name_of, is_wait
from ladderize.graph.in_flight import check_in_flight, is_launch
from ladderize.graph.ops import Kind
from ladderize.graph.schemas import arguments_of, schema_of
from ladderize.passes.defer_waits import DeferWaits
from ladderize.streams.left_out import LeftOut
from ladderize.testing.verify.candidate import Candidate
from ladderize.testing.verify.diagnose import describe
from ladderize.testing.verify.locate import Name
from ladderize.testing.verify.lockstep import JOINED
from ladderize.testing.verify.substituted import Original
from ladderize.testing.verify.verdict import Check

WAITS = "waits"
GROUPS = "groups"
HIDDEN = "hidden"


def check_waits(candidate: Candidate) -> Check:
    """Check that each collective has one wait, before anything reads its result."""
    for rank, part in enumerate(candidate.parts):
        try:
            check_in_flight(part.gm.graph)
        except LadderError as error:
            blocker = error.blockers[0]
            return Check(WAITS, "failed", f"on rank {rank}, {blocker.what}", blocker.where)
    launches = [node for node in candidate.parts[0].gm.graph.nodes if is_launch(node)]
    return Check(WAITS, "ok", f"{len(launches)} launches, each with one wait before any reader")


# ---- groups


def check_groups(candidate: Candidate) -> Check:
    """Check that each collective is over the group of all ranks."""
    number = 0
    for rank, part in enumerate(candidate.parts):
        for node in every_node(part.gm):
            if wrong := _wrong_group(node, candidate.num_ranks):
                found = f"{node.name} on rank {rank} {wrong}"
                return Check(GROUPS, "failed", found, describe_origin(node))
            number += rank == 0 and bool(group_name_of(node))
    if candidate.num_ranks == 1:
        return Check(GROUPS, "ok", "one rank, no collectives")
    return Check(GROUPS, "ok", f"{number} ops, each over all {candidate.num_ranks} ranks")


def _wrong_group(node: Node, num_ranks: int) -> str:
    """What is wrong with the group of a collective; "" if nothing."""
    name, functional = group_name_of(node), collective_of(node)
    if functional:
        return f"calls {functional} over the group {name!r}: a sharded ladder uses ladderize's ops"
    if not name:
        return ""
    if num_ranks == 1:
        return f"communicates over the group {name!r}, but there is one rank"
    if node.target not in (*JOINED, parallel_ops.copy):
        return f"communicates over the group {name!r} with an unknown op: {node.target}"
    if name != GROUP:
        return f"is over the group {name!r}, not over {GROUP!r}, the group of all ranks"
    size = arguments_of(node, schema_of(node)).get("group_size", num_ranks)
    return f"is over {size} ranks, not {num_ranks}" if size != num_ranks else ""


# ---- hidden


def check_hidden(
    original: Original, candidate: Candidate, places: Sequence[Mapping[Name, str]]
) -> Check:
    """Check that blocks before stale reads have compute between their launches and waits.

    The order is the one that runs, after `load` has deferred the waits with `DeferWaits`. A launch
    may hide nothing at the end of a stream, if the next branch reads its sum, or if the next block
    launches nothing, because waits are deferred past launches.
    """
    hidden, exposed = 0, 0
    deferred = {part.gm: _deferred(part.gm) for part in candidate.parts}
    for rank, part in enumerate(candidate.parts):
        gm = deferred[part.gm]
        position = {node: i for i, node in enumerate(gm.graph.nodes)}
        by_name = {node.name: node for node in gm.graph.nodes}
        named = {name: by_name[place] for name, place in places[rank].items()}
        waits = {name: list(_waits_of(node, set(named.values()))) for name, node in named.items()}
        compute = [position[node] for node in gm.graph.nodes if _computes(node)]
        for stream, block, where in _ahead_of_stale_reads(original):
            for wait in waits.get((stream, "y", block), ()):
                (launch,) = wait.all_input_nodes
                if any(position[launch] < at < position[wait] for at in compute):
                    hidden += rank == 0
                elif not waits.get((stream, "y", block + 1)):
                    exposed += rank == 0
                else:
                    found = f"{launch.name} hides nothing: its wait precedes all compute"
                    return Check(HIDDEN, "failed", f"{found} (rank {rank})", where)
    also = f"; {exposed} hide nothing, before blocks that launch nothing" if exposed else ""
    return Check(HIDDEN, "ok", f"{hidden} launches, each with compute before its wait{also}")


def _deferred(gm: GraphModule) -> GraphModule:
    """A copy of `gm` in the order that runs, with the same node names."""
    graph = Graph()
    nodes: dict[Node, Node] = {}
    graph.output(graph.graph_copy(gm.graph, nodes))
    for old, new in nodes.items():
        new.name = old.name
    copy = GraphModule(gm, graph)
    DeferWaits()(copy)
    return copy


def _ahead_of_stale_reads(original: Original) -> Iterator[tuple[int, int, str]]:
    """Stream, index and description of each block whose sum the next branch does not read."""
    left_out = {
        block
        for of_stream in original.reads
        for read in of_stream.joined
        if read.block.index == read.first
        for end in read.ends
        for block in end.left_out(1)
    }
    for number, of_stream in enumerate(original.reads):
        blocks, stale = of_stream.stream.blocks, of_stream.left_out()
        for block, after in itertools.zip_longest(blocks, blocks[1:]):
            is_left_out = after is not None and LeftOut(block) in stale.get(after.index, ())
            if block in left_out or is_left_out:
                yield number, block.index, describe(block, number)


def _waits_of(sum_: Node, named: set[Node]) -> Iterator[Node]:
    """The waits whose results reach a sum without mixing ops, back to other sums."""
    stack, seen = [sum_], {sum_}
    while stack:
        for source in stack.pop().all_input_nodes:
            if source in named or source in seen:
                continue
            seen.add(source)
            if is_wait(source):
                yield source
            elif ops.kind(source) is not Kind.MIX:
                stack.append(source)


def _computes(node: Node) -> bool:
    is_own = is_wait(node) or bool(group_name_of(node))
    return not is_own and ops.kind(node) is Kind.MIX
