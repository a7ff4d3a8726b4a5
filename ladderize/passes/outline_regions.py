"""Restore inlined regions, with the operands and results that the ladder pass added.

    before   c = linear(x, w);  z = add(x, c);  d = linear(x, v);  u = add(z, d)
    after    y = tag_activation_checkpoint(body, x, w);        z = getitem(y, 0)
             y1 = tag_activation_checkpoint(body1, x, v, z);   u = getitem(y1, 0)

A stale value that another region reads becomes an output of the region that computes it and an
operand of the one that reads it, so the backward pass recomputes the same values as before. A
region is the run of nodes from its first to its last node, including nodes inserted in between.
"""

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch.fx import Graph, GraphModule, Node

from ladderize.graph import ops
from ladderize.graph.fake_values import KEYS
from ladderize.graph.higher_order import REGION, Region
from ladderize.passes import PassResult


@dataclass(frozen=True)
class OutlineRegions:
    preserves_values: ClassVar[bool] = True

    def __call__(self, gm: GraphModule) -> PassResult:
        changed = 0
        while runs := _innermost_runs(gm):
            for region, nodes in runs.items():
                changed += 1
                _outline(gm, region, nodes, f"ladder_body_{changed}")
        if changed:
            gm.delete_all_unused_submodules()
        return PassResult(changed)


def _innermost_runs(gm: GraphModule) -> dict[Region, list[Node]]:
    """The nodes, from first to last, of each region without inner regions."""
    ends: dict[Region, tuple[Node, Node]] = {}
    for node in gm.graph.nodes:
        if REGION in node.meta:
            for region in node.meta[REGION].chain():
                first, _ = ends.get(region, (node, node))
                ends[region] = (first, node)
    around = {outer for region in ends for outer in list(region.chain())[1:]}
    return {region: _run(*ends[region]) for region in ends if region not in around}


def _run(first: Node, last: Node) -> list[Node]:
    nodes = [first]
    while nodes[-1] is not last:
        nodes.append(nodes[-1].next)
    return nodes


def _outline(gm: GraphModule, region: Region, nodes: list[Node], name: str) -> None:
    inside = set(nodes)
    sources = (source for node in nodes for source in node.all_input_nodes)
    attributes = {source for source in sources if source.op == "get_attr"} - inside
    body_nodes = [*attributes, *nodes]
    operands = list(
        dict.fromkeys(
            source
            for node in nodes
            for source in node.all_input_nodes
            if source not in inside and source not in attributes
        )
    )
    results = [node for node in nodes if any(user not in inside for user in node.users)]
    gm.add_submodule(name, _body(gm, body_nodes, operands, results, region))
    taken = _call(gm, region, name, operands, results, before=nodes[0])
    for result, value in taken.items():
        result.replace_all_uses_with(value, lambda user: user not in inside)
    for node in reversed(nodes):
        gm.graph.erase_node(node)


def _body(
    gm: GraphModule, nodes: list[Node], operands: list[Node], results: list[Node], region: Region
) -> GraphModule:
    graph = Graph()
    copies: dict[Node, Node] = {}
    for operand in operands:
        copies[operand] = graph.placeholder(operand.name)
        copies[operand].meta = _without_region(operand.meta)
    for node in nodes:
        copies[node] = graph.node_copy(node, lambda source: copies[source])
        copies[node].meta = _without_region(node.meta)
    graph.output(tuple(copies[result] for result in results))
    body = GraphModule(gm, graph)
    body.meta.update(region.body_meta)
    return body


def _call(
    gm: GraphModule,
    region: Region,
    name: str,
    operands: list[Node],
    results: list[Node],
    before: Node,
) -> dict[Node, Node]:
    """Insert a call of the new body ahead of `before`; returns the replacement of each result."""
    with gm.graph.inserting_before(before):
        body = gm.graph.get_attr(name)
        leading: list[Any] = [*region.leading]
        leading[region.kind.body] = body
        call = gm.graph.call_function(region.target, (*leading, *operands), dict(region.kwargs))
        call.meta = _without_region(region.meta) | _around(region)
        for key in KEYS:
            if key in region.meta:
                call.meta[key] = tuple(ops.value(result) for result in results)
        body.meta = _around(region)
        taken = {}
        for number, result in enumerate(results):
            item = gm.graph.call_function(operator.getitem, (call, number))
            item.meta = _without_region(result.meta) | _around(region)
            taken[result] = item
    return taken


def _without_region(meta: Any) -> dict[str, Any]:
    return {key: value for key, value in meta.items() if key != REGION}


def _around(region: Region) -> dict[str, Any]:
    return {} if region.parent is None else {REGION: region.parent}
