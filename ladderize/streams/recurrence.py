"""Read the recurrence back from a graph and compare it with the specified one.

    y0 = x0 + h0(x0)      x: anchors, y: sums, h: branches as uninterpreted functions,
    y1 = x1 + h1(x0)      T: the ops between a sum and the next anchor
    x1 = T0(y0)

    y3 = x3 + s3(x2) + r3(x2)      a block with a landed summand and one in flight
    y4 = x4 + h4(x3 + s3)          a branch that leaves out the summand in flight

The reader knows the blocks but not what the ladder pass did: it follows the edges of the present
graph and visits each node once.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import sympy
from torch.fx import GraphModule, Node

from ladderize.errors import Blocker, LadderError
from ladderize.graph import ops
from ladderize.graph.dataflow import find_sources, find_writes
from ladderize.streams.block import Block, Stream
from ladderize.streams.contributions import Contributions
from ladderize.streams.partial_values import PartialValues, terms_of

Writes = Mapping[Node, Mapping[Node, Node]]
Read: TypeAlias = Any
"""A named value, or an expression of named values."""


@dataclass(frozen=True)
class Recurrence:
    """For each block the equations of its sum and of its anchor, as sympy equalities.

    Attributes:
        shared: for each block, the anchors of other streams that its branch reads in nodes shared
            with a branch of those streams (joint attention). It reads what that branch reads.
    """

    sums: tuple[sympy.Eq, ...]
    anchors: tuple[sympy.Eq, ...]
    shared: tuple[frozenset[sympy.Symbol], ...] = ()


def read_recurrence(
    gm: GraphModule, streams: Sequence[Stream], splits: Contributions | None = None
) -> tuple[Recurrence, ...]:
    """Read the recurrence that `gm` computes, for each of `streams`.

    Args:
        gm: graph module.
        streams: streams of the standard graph.
        splits: contributions of the blocks with only some summands in flight.
    """
    symbols = name_values(streams)
    partial = PartialValues.of(streams, splits or {}, symbols)
    home = {
        node: (number, block.index)
        for number, stream in enumerate(streams)
        for block in stream.blocks
        for node in block.branch
    }
    writes = find_writes(gm.graph.nodes)
    reads = _follow_reads(gm, symbols, home, writes, partial)
    anchors = {block.anchor: block for stream in streams for block in stream.blocks}
    return tuple(
        replace(
            _equations(number, stream, symbols, reads, writes, partial),
            shared=tuple(
                _shared_reads(block, anchors, home, (number, block.index), symbols)
                for block in stream.blocks
            ),
        )
        for number, stream in enumerate(streams)
    )


def check_recurrence(found: Recurrence, specified: Recurrence, stream: Stream) -> None:
    """Raise `LadderError` with each block whose equation differs from the specified one."""
    blockers = [
        Blocker.at(block.add, f"block {block.index} computes {is_} instead of {should}")
        for block, is_, should in find_differences(found, specified, stream.blocks)
    ]
    if blockers:
        raise LadderError(
            "The rewritten graph does not compute the ladder recurrence:",
            blockers,
            "this is a bug in ladderize; please report it with options={'debug_dir': …}",
        )


def find_differences(
    found: Recurrence, specified: Recurrence, blocks: Sequence[Block]
) -> list[tuple[Block, sympy.Eq, sympy.Eq]]:
    """The blocks whose equations differ, each with the one found and the one specified."""
    return [
        (block, is_, should)
        for equations in ("sums", "anchors")
        for block, is_, should in zip(
            blocks, getattr(found, equations), getattr(specified, equations), strict=True
        )
        if is_ != should
    ]


def symbol_of(letter: str, number: int, index: int) -> sympy.Symbol:
    """The symbol of block `index` in stream `number`: its anchor (x), sum (y) or branch (b)."""
    return sympy.Symbol(f"{letter}{index}" if number == 0 else f"{letter}{index}_{number}")


def name_values(streams: Sequence[Stream]) -> dict[Node, sympy.Symbol]:
    symbols: dict[Node, sympy.Symbol] = {}
    for number, stream in enumerate(streams):
        for block in stream.blocks:
            symbols[block.add] = symbol_of("y", number, block.index)
        for block in stream.blocks:  # without a T, the anchor is the sum before it
            symbols[block.anchor] = symbol_of("x", number, block.index)
    return symbols


def _follow_reads(
    gm: GraphModule,
    symbols: Mapping[Node, sympy.Symbol],
    home: Mapping[Node, tuple[int, int]],
    writes: Writes,
    partial: PartialValues,
) -> dict[Node, frozenset[Read]]:
    """For each node, the nearest named values that it is computed from.

    A value inside a branch has the name `b<i>` for nodes outside of it, so a value that later
    branches share with an earlier branch stays the value that the earlier one computes.
    """
    reads: dict[Node, frozenset[Read]] = {}
    for node, sources in find_sources(gm.graph.nodes, writes).items():
        if node not in home and node not in symbols:
            partial.see(node)
        found: set[Read] = set()
        for source in sources:
            if not ops.holds_tensor(source):  # using the size of a value does not read it
                continue
            if source in symbols:
                found.add(symbols[source])
            elif source in partial.values:
                found.add(partial.values[source])
            elif source in home and home[source] != home.get(node):
                found.add(symbol_of("b", *home[source]))
            else:
                found |= reads[source]
        reads[node] = frozenset(found)
    return reads


def _shared_reads(
    block: Block,
    anchors: Mapping[Node, Block],
    home: Mapping[Node, tuple[int, int]],
    place: tuple[int, int],
    symbols: Mapping[Node, sympy.Symbol],
) -> frozenset[sympy.Symbol]:
    return frozenset(
        symbols[source]
        for node in block.branch
        if home[node] == place
        for source in node.all_input_nodes
        if source in anchors and source is not block.anchor and node in anchors[source].members
    )


def _equations(
    number: int,
    stream: Stream,
    symbols: Mapping[Node, sympy.Symbol],
    reads: Mapping[Node, frozenset[Read]],
    writes: Writes,
    partial: PartialValues,
) -> Recurrence:
    def seen(node: Node) -> frozenset[Read]:
        return frozenset({symbols[node]}) if node in symbols else reads[node]

    adds = {block.add for block in stream.blocks}
    sums, anchors = [], []
    for block in stream.blocks:
        sum_symbol = symbol_of("y", number, block.index)
        summands = _summands(block, writes)
        inside = [operand for operand in summands if operand in block.members]
        past = [operand for operand in summands if operand not in block.members]
        named = {"h": inside}
        if block in partial.splits:
            named = terms_of(partial.splits[block], inside)
        branch = sympy.Add(
            *(
                sympy.Function(f"{letter}{block.index}")(
                    *in_name_order(union_of(map(seen, operands)))
                )
                for letter, operands in named.items()
            )
        )
        skip = sympy.Add(*in_name_order(union_of(map(seen, past))))
        sums.append(sympy.Eq(sum_symbol, skip + branch, evaluate=False))
        behind = seen(block.anchor) if block.anchor in adds else reads[block.anchor]
        written = sympy.Function("T")(*in_name_order(behind))
        anchors.append(sympy.Eq(symbols[block.anchor], written, evaluate=False))
    return Recurrence(tuple(sums), tuple(anchors))


def _summands(block: Block, writes: Writes) -> list[Node]:
    """The present summands of the block's add, through its partial sums."""
    summands, stack = [], [block.add]
    while stack:
        node = stack.pop()
        for operand in node.all_input_nodes:
            if operand in block.partial_sums:
                stack.append(operand)
            else:
                summands.append(writes.get(node, {}).get(operand, operand))
    return summands


def union_of(sets: Iterable[frozenset[Read]]) -> frozenset[Read]:
    return frozenset().union(*sets)


def in_name_order(symbols: frozenset[Read] | set[Read]) -> list[Read]:
    return sorted(symbols, key=str)
