"""The tasks of a step and what each waits for, as a networkx `DiGraph`.

    h0 ──── all-reduce h0 ──┐ standard: h1 reads the sum behind h0
    h1 ──── all-reduce h1 ◄─┘ ladder: it reads an earlier one, and has no edge from there

Nodes stand in the order of the program: each lane works through its own in that order.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import networkx as nx

from ladderize.tools.predict.timeline.steps import BlockKey

COMPUTE, LINK = "compute", "link"
# Stream and index of the block behind which a sum stands.
Sum = tuple[int, int]


@dataclass(frozen=True)
class Branch:
    """What a block does in a step.

    Attributes:
        name: of its task.
        sum: the one that it adds to.
        reads: sums that its branch reads; those that no branch writes are there from the start.
        is_reduced: whether it ends in an all-reduce.
        block: in a report.
    """

    name: str
    sum: Sum
    reads: tuple[Sum, ...]
    is_reduced: bool = True
    block: BlockKey | None = None


def task_graph(branches: Iterable[Branch]) -> "nx.DiGraph[str]":
    """The tasks of `branches`, which stand in an order in which they can run."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    behind: dict[Sum, tuple[str, ...]] = {}
    for branch in branches:
        graph.add_node(branch.name, lane=COMPUTE, block=branch.block)
        waits = (task for read in branch.reads for task in behind.get(read, ()))
        graph.add_edges_from((task, branch.name) for task in waits)
        behind[branch.sum] = (branch.name, *_reduces(graph, behind, branch.sum))
        if branch.is_reduced:
            reduce = reduce_of(branch.name)
            graph.add_node(reduce, lane=LINK, block=branch.block)
            graph.add_edge(branch.name, reduce)
            behind[branch.sum] = (reduce,)  # in order: those before it are done
    return graph


def reduce_of(name: str) -> str:
    return f"all-reduce {name}"


def _reduces(
    graph: "nx.DiGraph[str]", behind: dict[Sum, tuple[str, ...]], here: Sum
) -> tuple[str, ...]:
    """What a sum holds of all-reduces before its own."""
    stream, index = here
    earlier = behind.get((stream, index - 1), ())
    return tuple(task for task in earlier if graph.nodes[task]["lane"] == LINK)
