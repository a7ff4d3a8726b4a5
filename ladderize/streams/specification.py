"""Derive the recurrence of a ladder from that of the standard model and the stale reads.

    standard     y1 = x1 + h1(x1)      y4 = x4 + h4(x4)
    specified    y1 = x1 + h1(x0)      y4 = x4 + h4(x3 + s3)

`recurrence.py` reads it back from the rewritten graph and compares the two.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import sympy
from sympy.core.function import AppliedUndef
from torch.fx import Node

from ladderize.streams.joins import JoinedRead, StaleReads
from ladderize.streams.partial_values import read_as_symbols
from ladderize.streams.recurrence import (
    Read,
    Recurrence,
    in_name_order,
    name_values,
    symbol_of,
    union_of,
)

Moved = Mapping[Read, Collection[Read]]
"""For each value that a branch no longer reads, the values that it reads instead."""


def specify_ladder(standard: Sequence[Recurrence], reads: Sequence[StaleReads]) -> list[Recurrence]:
    """The recurrence of each stream with the given stale reads.

    Args:
        standard: recurrences before the rewrite, from `read_recurrence`.
        reads: stale reads of each stream.
    """
    moved: dict[Read, Collection[Read]] = {
        symbol_of("x", number, index): {symbol_of("x", number, source)}
        for number, of_stream in enumerate(reads)
        for index, source in of_stream.sources.items()
    }
    own = [
        specify_recurrence(recurrence, reads[number].sources, number)
        for number, recurrence in enumerate(standard)
    ]
    symbols = name_values([of_stream.stream for of_stream in reads])
    for number, of_stream in enumerate(reads):
        for read in of_stream.joined:
            joined = {symbols[read.block.anchor]: _joined(read, standard[number], symbols)}
            own[number] = _move(own[number], read.block.index, joined)
            moved |= joined
        for partial in of_stream.partial:
            without = {symbols[partial.block.anchor]: {read_as_symbols(partial, symbols)}}
            own[number] = _move(own[number], partial.block.index, without)
            moved |= without
    return [_share(recurrence, moved) for recurrence in own]


def _joined(
    read: JoinedRead, standard: Recurrence, symbols: Mapping[Node, sympy.Symbol]
) -> set[sympy.Symbol]:
    """The symbols that a branch reads from before a join."""
    last = {end.value: end.blocks[-1].add for end in read.ends if end.blocks}
    written = {symbols.get(value, symbols[add]) for value, add in last.items()}
    unwritten = set(standard.anchors[read.first].rhs.args) - written
    return unwritten | {symbols[read.instead[value]] for value in last}


def _share(own: Recurrence, moved: Moved) -> Recurrence:
    """`own` with moved reads of other streams' anchors in shared branches."""
    for index, shared in enumerate(own.shared):
        own = _move(own, index, {fresh: moved[fresh] for fresh in shared & moved.keys()})
    return own


def _move(own: Recurrence, index: int, moved: Moved) -> Recurrence:
    sums = list(own.sums)
    sums[index] = _with_reads(sums[index], moved)
    return replace(own, sums=tuple(sums))


def specify_recurrence(
    standard: Recurrence, sources: Mapping[int, int], number: int = 0
) -> Recurrence:
    """`standard` with each chosen branch i reading the anchor of block `sources[i]` instead.

    Args:
        standard: recurrence before the rewrite, from `read_recurrence`.
        sources: for each rerouted block, the index of the block whose anchor it reads.
        number: index of the stream among the streams of the graph.
    """
    for index, source in sources.items():
        fresh, stale = symbol_of("x", number, index), symbol_of("x", number, source)
        standard = _move(standard, index, {fresh: {stale}})
    return standard


def _with_reads(total: sympy.Eq, moved: Moved) -> sympy.Eq:
    """`total` with the arguments of its branch moved."""
    return sympy.Eq(total.lhs, sympy.Add(*_moved_terms(total.rhs, moved)), evaluate=False)


def _moved_terms(total: Read, moved: Moved) -> Iterator[Read]:
    for term in sympy.Add.make_args(total):
        if isinstance(term, AppliedUndef):
            reads = union_of(frozenset(moved.get(arg, {arg})) for arg in term.args)
            yield term.func(*in_name_order(reads))
        else:
            yield term
