"""The block graph as a networkx `DiGraph`.

    x0 ──skip── x1 ──skip── x2        nodes: values (role "value") and blocks (role "block")
     └─read─ h0 ─write┘ …             edges: skip, read (with stale, staleness), write

`x<n>` after the last block is the end of the stream. In a report of several graphs, names in all
but the first start with `graph<i>.`.
"""

import dataclasses

import networkx as nx

from ladderize.report.data import BlockReport, GraphReport, ReportData
from ladderize.report.naming import block_name, name, parse


def network_of(report: ReportData) -> "nx.DiGraph[str]":
    net: nx.DiGraph[str] = nx.DiGraph()
    for graph in report.graphs:
        prefix = f"graph{graph.index}." if graph.index else ""
        for stream in graph.streams:
            for block in stream.blocks:
                _add_block(net, block, prefix)
        _add_reads(net, graph, prefix)
    return net


def _add_block(net: "nx.DiGraph[str]", block: BlockReport, prefix: str) -> None:
    here, there = prefix + name("x", block), prefix + name("x", block, offset=1)
    branch = prefix + block_name(block)
    for value in (here, there):
        net.add_node(value, role="value", stream=block.stream)
    fields = {f.name: getattr(block, f.name) for f in dataclasses.fields(block)}
    net.add_node(branch, role="block", **fields)
    net.add_edge(here, there, role="skip")
    net.add_edge(branch, there, role="write")


def _add_reads(net: "nx.DiGraph[str]", graph: GraphReport, prefix: str) -> None:
    for stream in graph.streams:
        for block in stream.blocks:
            for read in block.reads_after:
                staleness = staleness_of(block, read)
                net.add_edge(
                    prefix + _node_of(read),
                    prefix + block_name(block),
                    role="read",
                    stale=staleness > 0,
                    staleness=staleness,
                )


def staleness_of(block: BlockReport, read: str) -> int:
    """By how many blocks `read` is earlier than in the standard model; 0 if unchanged."""
    value = parse(read)
    if read in block.reads_before or value.letter != "x" or value.stream != block.stream:
        return 0
    return block.index - value.index


def _node_of(read: str) -> str:
    """The node of the value `read`; a sum is the stream's next value."""
    value = parse(read)
    suffix = f"_{value.stream}" if value.stream else ""
    if value.letter == "y":
        return f"x{value.index + 1}{suffix}"
    return f"{'x' if value.letter == 'x' else 'h'}{value.index}{suffix}"
