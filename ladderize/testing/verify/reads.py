"""Which stream values each stream value is computed from, in a graph and by specification.

    y2 = x2 + h2(norm(x1))   ──  {x1, x2}        graph edges only, no numbers

The candidate's graph is followed as is. The specification follows the original's graph, with
earlier anchors for rerouted branches. Sizes do not count as reads.
"""

from collections.abc import Callable, Iterable, Mapping

from torch.fx import GraphModule, Node

from ladderize.graph import ops
from ladderize.graph.dataflow import find_sources, find_writes
from ladderize.testing.verify.locate import Name
from ladderize.testing.verify.substituted import Original

Reads = frozenset[Name]


def follow(
    gm: GraphModule,
    named: Mapping[Node, Name],
    instead: Callable[[Node, Node], Iterable[Node]] = lambda _, source: (source,),
) -> dict[Node, Reads]:
    """The named values that each node is computed from, without going past named values.

    Args:
        gm: any graph.
        named: nodes that compute named values.
        instead: maps a node and one of its sources to the nodes that it reads instead.
    """
    reads: dict[Node, Reads] = {}
    sources = find_sources(gm.graph.nodes, find_writes(gm.graph.nodes))
    for node, before in sources.items():
        found: set[Name] = set()
        for source in (other for s in before if ops.holds_tensor(s) for other in instead(node, s)):
            found |= {named[source]} if source in named else reads[source]
        reads[node] = frozenset(found)
    return reads


def specified(original: Original, named: Mapping[Node, Name]) -> dict[Node, Reads]:
    """`follow` of the reference ladder of `original`."""
    stale, joined = original.stale_reads(), original.joined_reads()
    partial = original.partial_reads()

    def instead(node: Node, source: Node) -> Iterable[Node]:
        if (read := joined.get(node, {}).get(source)) is not None:
            return read.instead.values()
        if (part := partial.get(node, {}).get(source)) is not None:
            return (part.before.block.skip, *(summand.value for summand in part.before.landed))
        path = stale.get(node, {}).get(source)
        return (source,) if path is None else (path[0].anchor,)

    return follow(original.gm, named, instead)


def results(
    gm: GraphModule, reads: Mapping[Node, Reads], named: Mapping[Node, Name]
) -> list[Reads]:
    """The named values that each output of `gm` is computed from."""
    (output,) = gm.graph.find_nodes(op="output")
    return [_of(value, reads, named) for value in output.args[0]]


def _of(value: object, reads: Mapping[Node, Reads], named: Mapping[Node, Name]) -> Reads:
    if not isinstance(value, Node):
        return frozenset()
    return frozenset({named[value]}) if value in named else reads[value]


def spell(names: Iterable[Name]) -> str:
    """`{x1, x2}`."""
    return "{" + ", ".join(spell_name(name) for name in sorted(names)) + "}"


def spell_name(name: Name) -> str:
    """`x3`, and `x3_1` in stream 1, as in reports."""
    stream, letter, index = name
    return f"{letter}{index}" if stream == 0 else f"{letter}{index}_{stream}"
