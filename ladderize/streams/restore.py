"""Reconstruct the standard model of a ladder, and find what its blocks read in the ladder.

    ladder      x2 = x1 + h1(x0);  x3 = x2 + h2(x2)
    standard    x2 = x1 + h1(x1);  x3 = x2 + h2(x2)      block 1 reads x0 in the ladder

A stale branch reads a value some cheap steps before the skip of an earlier block; its fresh read is
the same number of steps before its own skip. The ladder's graph is unchanged, the standard model is
a copy. It is accepted only if its ladder has the recurrence of the given ladder.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch.fx import Graph, GraphModule, Node

from ladderize.errors import Blocker, LadderError
from ladderize.graph import ops
from ladderize.graph.dataflow import find_memory_order
from ladderize.streams.block import Block, End, Stream
from ladderize.streams.context import AnalysisContext
from ladderize.streams.find import streams_in
from ladderize.streams.joins import StaleReads
from ladderize.streams.recurrence import (
    Recurrence,
    find_differences,
    read_recurrence,
)
from ladderize.streams.specification import specify_ladder

Edits = dict[Node, dict[Node, Node]]
"""For each reader of a stale value, the value to read instead."""


@dataclass(frozen=True, eq=False)
class Restored:
    """A standard model and its ladder.

    Attributes:
        context: analysis of the standard graph.
        streams: streams of the standard graph.
        recurrences: recurrences of the standard graph.
        copies: nodes of the standard graph, by those of the ladder.
        in_ladder: the streams as nodes of the ladder.
        stale: for each stream, the blocks that read stale in the ladder, with the index of the
            block whose anchor they read.
    """

    context: AnalysisContext
    streams: tuple[Stream, ...]
    recurrences: tuple[Recurrence, ...]
    copies: Mapping[Node, Node]
    in_ladder: tuple[Stream, ...]
    stale: tuple[dict[int, int], ...]


def restore_standard(context: AnalysisContext, streams: Sequence[Stream]) -> Restored:
    """Reconstruct the standard model of a ladder.

    Args:
        context: analysis of the ladder.
        streams: streams of the ladder, some with stale blocks.

    Raises:
        LadderError: lists the stale blocks with an unknown fresh read.
    """
    ladder, given = context, {node: node for node in context.nodes}
    reads: dict[Node, Node] = {}
    while any(stream.stale_blocks for stream in streams):
        stale = [block for stream in streams for block in stream.stale_blocks]
        reads |= {given[block.add]: given[block.anchor] for block in stale}
        copies = _copy(context, _edits(context, streams))
        given = {copy: given[node] for node, copy in copies.items()}
        gm = GraphModule(context.gm, next(iter(given)).graph)
        context = AnalysisContext(gm, [copies[node] for node in context.parameters])
        streams = streams_in(context)
    in_ladder = _in_names(streams, given)
    sources = _sources(in_ladder, reads)
    standard = read_recurrence(context.gm, streams)
    specified = specify_ladder(standard, list(map(StaleReads, in_ladder, sources)))
    found = read_recurrence(ladder.gm, in_ladder)
    wrong = [
        Blocker.at(block.add, f"block {block.index} computes {is_} instead of {should}")
        for own, wanted, stream in zip(found, specified, in_ladder, strict=True)
        for block, is_, should in find_differences(own, wanted, stream.blocks)
    ]
    if wrong:
        raise _refusal(wrong)
    copies = {original: copy for copy, original in given.items()}
    return Restored(context, tuple(streams), standard, copies, in_ladder, sources)


def _refusal(blockers: Iterable[Blocker]) -> LadderError:
    return LadderError(
        "The standard model of this ladder cannot be reconstructed:",
        blockers,
        "leave out layers=, blocks=, staleness= and connectivity=, which keeps its reads; or use "
        "them with the standard model",
    )


# ---- the fresh reads of stale branches ---------------------------------------------------------


def _edits(context: AnalysisContext, streams: Iterable[Stream]) -> Edits:
    edits: Edits = {}
    unknown: list[Blocker] = []
    for stream in streams:
        blocks = (*stream.blocks, *stream.stale_blocks)
        steps = {
            value: number
            for block in blocks
            for number, value in enumerate(context.walk_back(block.skip))
        }
        home = _home(context, blocks)
        for block in stream.stale_blocks:
            own = context.walk_back(block.skip)
            number = steps.get(block.anchor, len(own))
            reads = list(_reads(block, home, own[number])) if number < len(own) else []
            for reader, value in reads:
                edits.setdefault(reader, {})[value] = own[number]
            if not reads:
                what = f"reads {block.anchor} stale, and its fresh read is unknown"
                unknown.append(Blocker.at(block.add, what))
    if unknown:
        raise _refusal(unknown)
    return edits


def _home(context: AnalysisContext, blocks: Iterable[Block]) -> dict[Node, Block]:
    """The block of each node; a node in several branches belongs to the earliest block."""
    home: dict[Node, Block] = {}
    for block in sorted(blocks, key=lambda block: context.position[block.add]):
        for node in block.branch:
            home.setdefault(node, block)
    return home


def _reads(block: Block, home: Mapping[Node, Block], fresh: Node) -> Iterator[tuple[Node, Node]]:
    """The readers in a stale branch of the anchor, cast and laid out like `fresh`."""
    value = block.anchor
    while _form(value) != _form(fresh):
        readers = [user for user in value.users if home.get(user) is block]
        if len(readers) != 1 or not ops.only_scales(readers[0]):
            return
        (value,) = readers
    yield from ((user, value) for user in value.users if home.get(user) is block)


def _form(node: Node) -> tuple[object, object]:
    return ops.floating_shape(node), getattr(ops.value(node), "dtype", None)


# ---- the standard graph ------------------------------------------------------------------------


def _copy(context: AnalysisContext, edits: Edits) -> dict[Node, Node]:
    """Copy the nodes of a graph, with reads replaced as in `edits`.

    The copies have the order of the originals, except that each comes after its operands: a branch
    may have been computed before the sum that it reads fresh.
    """
    graph = Graph()
    copies: dict[Node, Node] = {}
    for node in context.nodes:
        path = [] if node in copies else [node]
        while path:
            instead = edits.get(path[-1], {})
            reads = {read: instead.get(read, read) for read in path[-1].all_input_nodes}
            waiting = next((read for read in reads.values() if read not in copies), None)
            if waiting is None:
                copied = path.pop()
                own = {read: copies[fresh] for read, fresh in reads.items()}
                copies[copied] = graph.node_copy(copied, own.__getitem__)
            elif waiting in path:
                what = "reads stale, and its fresh read depends on it"
                raise _refusal([Blocker.at(node, what)])
            else:
                path.append(waiting)
    _check_memory(context.nodes, copies)
    return copies


def _check_memory(nodes: Sequence[Node], copies: Mapping[Node, Node]) -> None:
    position = {node: number for number, node in enumerate(copies)}
    moved = [
        Blocker.at(node, f"{ops.op_name(node)} must stay after {ops.op_name(ahead)}")
        for ahead, followers in find_memory_order(nodes).items()
        for node in followers
        if position[node] < position[ahead]
    ]
    if moved:
        raise _refusal(moved)


# ---- the standard model in the ladder ------------------------------------------------------------


def _in_names(streams: Sequence[Stream], names: Mapping[Node, Node]) -> tuple[Stream, ...]:
    """`streams` as the nodes of another graph."""
    blocks = {
        block: replace(
            block,
            anchor=names[block.anchor],
            skip=names[block.skip],
            branch=tuple(names[node] for node in block.branch),
            outputs=tuple(names[node] for node in block.outputs),
            add=names[block.add],
            partial_sums=tuple(names[node] for node in block.partial_sums),
        )
        for stream in streams
        for block in stream.blocks
    }

    def renamed(end: End) -> End:
        return End(names[end.value], tuple(blocks[block] for block in end.blocks))

    return tuple(
        replace(
            stream,
            blocks=tuple(blocks[block] for block in stream.blocks),
            joins={index: tuple(map(renamed, ends)) for index, ends in stream.joins.items()},
        )
        for stream in streams
    )


def _sources(streams: Sequence[Stream], reads: Mapping[Node, Node]) -> tuple[dict[int, int], ...]:
    """For each stream, the blocks that read stale, with the index of the block that they read.

    Args:
        streams: streams of the standard model, as nodes of the ladder.
        reads: for the sum of each stale block, the value that its branch reads.
    """
    sources: list[dict[int, int]] = []
    left = dict(reads)
    for stream in streams:
        anchors = {(block.segment, block.anchor): block.index for block in stream.blocks}
        read = {b.index: (b.segment, reads[b.add]) for b in stream.blocks if b.add in reads}
        sources.append({index: anchors[value] for index, value in read.items() if value in anchors})
        for index in sources[-1]:
            del left[stream.blocks[index].add]
    if left:
        raise _refusal(
            Blocker.at(add, f"reads {read}, which no earlier block reads")
            for add, read in left.items()
        )
    return tuple(sources)
