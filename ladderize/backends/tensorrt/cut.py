"""Make each run of compute between two boundaries a submodule, without changing the order.

    before   n = norm(x0)  v = t(w)  h0 = mm(n, v)  p = view(h0, [2, 8, 4])  l0 = all_reduce(p)
             h1 = mm(x0, t(u))  l1 = all_reduce(h1)  w0 = wait(l0)  x1 = add(x0, w0)
    after    (p,) = island_0(x0, w)    l0 = all_reduce(p)
             (h1,) = island_1(x0, u)   l1 = all_reduce(h1)   w0 = wait(l0)
             (x1,) = island_2(x0, w0)

Boundaries (`islands.py`) are collectives and waits, writes into memory, calls with subgraphs, and
numbers that the host reads. They are not moved, so the order of launches and waits, and of writes
and reads, is unchanged. No compute moves past a boundary.

Free ops (views and arithmetic of sizes) are copied into each island that reads them, and stay
outside for readers there. So a weight crosses into an island, not its transpose. An output is a
computed value, or its reshape if that is all that others read. It is never an input or a view of
one, and no two outputs share memory. An island reads sizes from its tensors; other sizes are passed
as numbers, after the tensors.

A run that computes nothing from values, such as a lone `arange`, stays outside.
"""

import operator
from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx import Graph, GraphModule, Node

from ladderize.backends.tensorrt.islands import Island, Role, find_islands, is_size, role_of
from ladderize.graph import ops
from ladderize.graph.writes import is_impure
from ladderize.passes import PassResult

_SIZE = torch.ops.aten.sym_size.int


@dataclass(frozen=True)
class CutIslands:
    """Cuts a functional ATen graph with fake values into islands. Linear."""

    preserves_values: ClassVar[bool] = True

    def __call__(self, gm: GraphModule) -> PassResult:
        nodes = list(gm.graph.nodes)
        islands = find_islands(gm.graph)
        inside = {node for island in islands for node in island.nodes}
        bodies = {island: _Body(island, inside) for island in islands}
        kept = _kept(gm.graph, inside, [node for body in bodies.values() for node in body.inputs])
        taken: dict[Node, Node] = {}
        for island, body in bodies.items():
            results = [node for node in island.nodes if node in kept]
            gm.add_submodule(island.name, body.finish(results, island.name))
            inputs = [taken.get(node, node) for node in body.inputs]
            taken |= _call(gm.graph, island, inputs, results)
        for node in reversed(nodes):
            if node in inside or (node.op.startswith("call_") and node not in kept):
                gm.graph.erase_node(node)
        for result, item in taken.items():
            item.name = result.name  # the name is free now
        return PassResult(changed=len(bodies))


class _Body:
    """The graph of one island, copied from the outer graph; `inside` has the nodes of all islands.

    Attributes:
        inputs: nodes of the outer graph that it reads, in the order of its placeholders: tensors
            in the order of first reads, then numbers.
    """

    def __init__(self, island: Island, inside: Set[Node]) -> None:
        self.inputs: list[Node] = []
        self._graph = Graph()
        self._copies: dict[Node, Node] = {}
        self._last_input: Node | None = None
        for source in _tensors_read(island, inside):
            self._take(source)
        self._sizes = {
            size.node.expr: (tensor, dim)
            for tensor in reversed(self.inputs)
            for dim, size in reversed(list(enumerate(ops.value(tensor).shape)))
            if isinstance(size, torch.SymInt)
        }
        self._nodes = frozenset(island.nodes)
        for node in island.nodes:
            self._copy(node)

    def finish(self, results: Iterable[Node], name: str) -> GraphModule:
        """The island as a module that returns the tuple of `results`."""
        self._graph.output(tuple(self._copies[node] for node in results))
        return GraphModule({}, self._graph, name)

    def _take(self, source: Node) -> Node:
        """Add a placeholder for `source` after the existing ones."""
        with self._graph.inserting_after(self._last_input):
            made = self._graph.placeholder(source.name)
        made.meta = dict(source.meta)
        self.inputs.append(source)
        self._copies[source] = self._last_input = made
        return made

    def _copy(self, source: Node) -> Node:
        """The copy of `source` in the island, made on first use."""
        if source not in self._copies:
            self._copies[source] = self._make(source)
        return self._copies[source]

    def _make(self, source: Node) -> Node:
        size = ops.value(source)
        if isinstance(size, torch.SymInt) and size.node.expr in self._sizes:
            tensor, dim = self._sizes[size.node.expr]
            made = self._graph.call_function(_SIZE, (self._copies[tensor], dim))
            made.meta["val"] = size
            return made
        if source in self._nodes or (role_of(source) is Role.FREE and self._can_be_made(source)):
            return self._graph.node_copy(source, self._copy)
        return self._take(source)

    def _can_be_made(self, source: Node) -> bool:
        """Whether the island has the tensors that a free node reads, if any."""
        tensors = [node for node in source.all_input_nodes if not is_size(node)]
        return all(self._is_at_hand(node) for node in tensors)

    def _is_at_hand(self, tensor: Node) -> bool:
        """Whether `tensor` is computed in the island, is an input, or is a view of one of these."""
        while tensor not in self._nodes and tensor not in self._copies:
            if role_of(tensor) is not Role.FREE:
                return False
            tensor = tensor.all_input_nodes[0]
        return True


def _tensors_read(island: Island, inside: Set[Node]) -> dict[Node, None]:
    """The tensors that cross into an island, through views, in the order of first reads."""
    seen = set(island.nodes)
    found: dict[Node, None] = {}

    def read(node: Node) -> None:
        for source in node.all_input_nodes:
            if source in seen or is_size(source):
                continue
            seen.add(source)
            if role_of(source) is Role.FREE and source not in inside:
                read(source)
            else:
                found[source] = None

    for node in island.nodes:
        read(node)
    return found


def _kept(graph: Graph, inside: Set[Node], inputs: Iterable[Node]) -> set[Node]:
    """The nodes that stay outside or that are outputs of islands."""
    stack = [node for node in graph.nodes if node not in inside and _is_needed(node)]
    stack += inputs
    kept: set[Node] = set()
    while stack:
        node = stack.pop()
        if node not in kept:
            kept.add(node)
            stack += () if node in inside else node.all_input_nodes
    return kept


def _is_needed(node: Node) -> bool:
    return node.op == "output" or role_of(node) is Role.BOUNDARY or is_impure(node)


def _call(
    graph: Graph, island: Island, inputs: list[Node], results: list[Node]
) -> dict[Node, Node]:
    """Call the island at its first node; return the item that replaces each of `results`."""
    first = island.nodes[0]
    for source in inputs:
        _hoist(source, first)
    taken = {}
    with graph.inserting_before(first):
        call = graph.call_module(island.name, tuple(inputs))
        call.meta["val"] = tuple(ops.value(result) for result in results)
        for number, result in enumerate(results):
            item = graph.call_function(operator.getitem, (call, number))
            item.meta = dict(result.meta)
            result.replace_all_uses_with(item)
            taken[result] = item
    return taken


def _hoist(node: Node, place: Node) -> None:
    """Move a number or an item of a boundary, with its operands, before `place`."""
    if place < node:
        for source in node.all_input_nodes:
            _hoist(source, place)
        place.prepend(node)
