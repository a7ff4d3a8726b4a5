"""Make each run of compute between two boundaries a submodule, in the order as it stands.

    before   n = norm(x0)  v = t(w)  h0 = mm(n, v)  p = view(h0, [2, 8, 4])  l0 = all_reduce(p)
             h1 = mm(x0, t(u))  l1 = all_reduce(h1)  w0 = wait(l0)  x1 = add(x0, w0)
    after    (p,) = segment_0(x0, w)    l0 = all_reduce(p)
             (h1,) = segment_1(x0, u)   l1 = all_reduce(h1)   w0 = wait(l0)
             (x1,) = segment_2(x0, w0)

Boundaries (`islands.py`): collectives and waits, writes into memory, calls with graphs of
their own, numbers that the host reads. They stay where they are, so that the order of launches and
waits, and of writes and reads, is as before. Nothing that computes moves past one.

What is free, views and the arithmetic of sizes, is done where it is read: it is copied into each
segment that reads it, and stays outside for what reads it there. So what crosses into a segment is
a weight, not its transpose. An output is what was computed, or the one reshape of it that is all
that others read; never an input or a view of one, and no two outputs share memory. A segment reads
the sizes that it needs off its tensors; one that is the size of none of them comes in as a number,
after the tensors.

A run that computes nothing from values, such as a lone `arange`, stays outside.
"""

import operator
from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx import Graph, GraphModule, Node

from ladderize.backends.tensorrt.islands import Role, Segment, find_segments, is_size, role_of
from ladderize.graph import ops
from ladderize.passes import PassResult

_SIZE = torch.ops.aten.sym_size.int


@dataclass(frozen=True)
class CutSegments:
    """Expects a functional ATen graph with fake values. Linear."""

    preserves_values: ClassVar[bool] = True

    def __call__(self, gm: GraphModule) -> PassResult:
        nodes = list(gm.graph.nodes)
        segments = find_segments(gm.graph)
        inside = {node for segment in segments for node in segment.nodes}
        bodies = {segment: _Body(segment, inside) for segment in segments}
        kept = _kept(gm.graph, inside, [node for body in bodies.values() for node in body.inputs])
        taken: dict[Node, Node] = {}
        for segment, body in bodies.items():
            results = [node for node in segment.nodes if node in kept]
            gm.add_submodule(segment.name, body.finish(results, segment.name))
            inputs = [taken.get(node, node) for node in body.inputs]
            taken |= _call(gm.graph, segment, inputs, results)
        for node in reversed(nodes):
            if node in inside or (node.op.startswith("call_") and node not in kept):
                gm.graph.erase_node(node)
        for result, item in taken.items():
            item.name = result.name  # free again
        return PassResult(changed=len(bodies))


class _Body:
    """The graph of one segment, copied from the graph around; `inside` holds those of all.

    Attributes:
        inputs: what it reads, as nodes of the graph around, in the order of its placeholders:
            tensors in the order in which they are read, then numbers.
    """

    def __init__(self, segment: Segment, inside: Set[Node]) -> None:
        self.inputs: list[Node] = []
        self._graph = Graph()
        self._copies: dict[Node, Node] = {}
        self._last_input: Node | None = None
        for source in _tensors_read(segment, inside):
            self._take(source)
        self._sizes = {
            size.node.expr: (tensor, dim)
            for tensor in reversed(self.inputs)
            for dim, size in reversed(list(enumerate(ops.value(tensor).shape)))
            if isinstance(size, torch.SymInt)
        }
        self._nodes = frozenset(segment.nodes)
        for node in segment.nodes:
            self._copy(node)

    def finish(self, results: Iterable[Node], name: str) -> GraphModule:
        """The segment as a module that returns the tuple of `results`."""
        self._graph.output(tuple(self._copies[node] for node in results))
        return GraphModule({}, self._graph, name)

    def _take(self, source: Node) -> Node:
        """A placeholder for `source`, after those that there are."""
        with self._graph.inserting_after(self._last_input):
            made = self._graph.placeholder(source.name)
        made.meta = dict(source.meta)
        self.inputs.append(source)
        self._copies[source] = self._last_input = made
        return made

    def _copy(self, source: Node) -> Node:
        """What stands for `source` in the segment; made if it is not there yet."""
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
        """Whether the segment has the tensor that a free node looks at, if it looks at any."""
        tensors = [node for node in source.all_input_nodes if not is_size(node)]
        return all(self._is_at_hand(node) for node in tensors)

    def _is_at_hand(self, tensor: Node) -> bool:
        """Whether it is computed here, or is an input, or a view of such a tensor."""
        while tensor not in self._nodes and tensor not in self._copies:
            if role_of(tensor) is not Role.FREE:
                return False
            tensor = tensor.all_input_nodes[0]
        return True


def _tensors_read(segment: Segment, inside: Set[Node]) -> dict[Node, None]:
    """What crosses into a segment but numbers: through views, in the order of the first read."""
    seen = set(segment.nodes)
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

    for node in segment.nodes:
        read(node)
    return found


def _kept(graph: Graph, inside: Set[Node], inputs: Iterable[Node]) -> set[Node]:
    """What something outside or another segment reads: all that stays outside, and the outputs."""
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
    return node.op == "output" or role_of(node) is Role.BOUNDARY or ops.is_impure(node)


def _call(
    graph: Graph, segment: Segment, inputs: list[Node], results: list[Node]
) -> dict[Node, Node]:
    """Call the segment where it began; for each of `results` the item that takes its place."""
    first = segment.nodes[0]
    for source in inputs:
        _hoist(source, first)
    taken = {}
    with graph.inserting_before(first):
        call = graph.call_module(segment.name, tuple(inputs))
        call.meta["val"] = tuple(ops.value(result) for result in results)
        for number, result in enumerate(results):
            item = graph.call_function(operator.getitem, (call, number))
            item.meta = dict(result.meta)
            result.replace_all_uses_with(item)
            taken[result] = item
    return taken


def _hoist(node: Node, place: Node) -> None:
    """Move a number or an item of a boundary, and what it needs, ahead of `place`."""
    if place < node:
        for source in node.all_input_nodes:
            _hoist(source, place)
        place.prepend(node)
