"""Number the values of graphs, so that equal numbers are equal values in any of them.

    flat   h = mm(x, w)   l = all_reduce(h)        1 = mm(input 0, input 1) in run 0
    cut    (h,) = island_0(x, w)   l = …(h)       event 0 = all_reduce(1)

A graph that is cut into islands is read as if it were flat, whatever the way it was cut.
"""

import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from ladderize.backends.tensorrt.islands import Role, is_call, is_size, role_of
from ladderize.graph import ops
from ladderize.graph.writes import written_operands
from ladderize.sharding.views import as_expr

Event = tuple[Any, Node]
"""A boundary: its target with the numbers of its operands, and its node."""


@dataclass
class Actions:
    """The actions of a graph, in order.

    Attributes:
        events: boundaries.
        computed: calls that compute: number of the value, number of earlier events, and node.
        outputs: numbers of the results.
    """

    events: list[Event] = field(default_factory=list)
    computed: list[tuple[int, int, Node]] = field(default_factory=list)
    outputs: Any = None


class Numbering:
    """Numbers the values of the graphs that it reads; the first one defines the symbols of sizes.

    A size has the number of its expression, however it is computed. A computation from memory gets
    a new number after a write into it; a view keeps its number, because it shows all writes.
    """

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}
        self.shapes: dict[int, torch.Size] = {}
        self.is_complete = False

    def read(self, gm: GraphModule) -> Actions:
        """The actions of `gm`. Linear."""
        reader = _GraphReader(self)
        reader.actions.outputs = reader.walk(gm.graph, reader.inputs_of(gm.graph))
        self.is_complete = True
        return reader.actions

    def of(self, key: Any) -> int:
        return self._numbers.setdefault(key, len(self._numbers))

    def of_size(self, key: Any, node: Node) -> int:
        """The number of the expression that `key` has in the first graph, if it occurs there."""
        size = ops.value(node)
        if key not in self._numbers and not self.is_complete and isinstance(size, torch.SymInt):
            self._numbers[key] = self.of(("size", as_expr(size)))
        return self.of(key)


_NOTHING = -1  # the number of a missing input


class _GraphReader:
    """One walk through a graph and its islands.

    Attributes:
        actions: actions found so far.
    """

    def __init__(self, numbering: Numbering) -> None:
        self.actions = Actions()
        self._numbering = numbering
        self._memory: dict[int, int] = {}  # view -> what it is a view of
        self._writes: Counter[int] = Counter()  # into the memory of a value
        self._draws: Counter[Any] = Counter()  # of random numbers, by the same call

    def walk(self, graph: Graph, given: Mapping[Node, int]) -> tuple[Any, ...]:
        """The numbers of the results of `graph` for inputs with the numbers `given`."""
        known: dict[Node, Any] = {}
        results: tuple[Any, ...] = ()
        for node in graph.nodes:
            if node.op == "placeholder":
                known[node] = given.get(node, _NOTHING)
            elif node.op == "get_attr":
                known[node] = self._numbering.of(("attribute", node.target))
            elif is_call(node):
                known[node] = self._island(node, known)
            elif node.op == "output":
                results = _freeze(node.args[0], known)
            else:
                known[node] = self._call(node, known)
                self._note_shape(known[node], node)
        return results

    def inputs_of(self, graph: Graph) -> dict[Node, int]:
        found = {}
        for place, node in enumerate(graph.find_nodes(op="placeholder")):
            found[node] = self._numbering.of_size(("input", place), node)
            self._note_shape(found[node], node)
        return found

    def _note_shape(self, number: int, node: Node) -> None:
        value = ops.value(node)
        if isinstance(value, torch.Tensor):
            self._numbering.shapes.setdefault(number, value.shape)

    def _island(self, call: Node, known: Mapping[Node, Any]) -> tuple[Any, ...]:
        body = ops.called_module(call)
        assert isinstance(body, GraphModule)
        inputs = body.graph.find_nodes(op="placeholder")
        # Not strict: the number of inputs is checked elsewhere.
        given = zip(inputs, _freeze(call.args, known), strict=False)
        return self.walk(body.graph, dict(given))

    def _call(self, node: Node, known: Mapping[Node, Any]) -> int:
        is_item = node.target is operator.getitem
        if is_item and is_call(node.all_input_nodes[0]):
            results, place = node.args
            item: int = known[results][place]  # type: ignore[index]  # a node and a number
            return item
        key = (node.target, _freeze((node.args, node.kwargs), known))
        role = role_of(node)
        if role is Role.BOUNDARY and not is_item:
            return self._event(key, node, known)
        if is_size(node):
            return self._size(key, node, known)
        if role is Role.FREE or is_item:
            number = self._numbering.of(key)
            if ops.holds_tensor(node):
                self._memory[number] = self._root(known[node.all_input_nodes[0]])
            return number
        return self._compute(key, node, known)

    def _event(self, key: Any, node: Node, known: Mapping[Node, Any]) -> int:
        number = self._numbering.of_size(("event", len(self.actions.events)), node)
        self.actions.events.append((key, node))
        for written in written_operands(node):
            root = self._memory[number] = self._root(known[written])
            self._writes[root] += 1
        return number

    def _size(self, key: Any, node: Node, known: Mapping[Node, Any]) -> int:
        if node.target is torch.ops.aten.sym_size.int:
            dim: Any = node.args[1]
            shape = self._numbering.shapes.get(known[node.all_input_nodes[0]])
            if shape is not None:  # a constant has none
                return self._numbering.of(("size", as_expr(shape[dim])))
        return self._numbering.of_size(key, node)

    def _compute(self, key: Any, node: Node, known: Mapping[Node, Any]) -> int:
        roots = [self._root(known[source]) for source in node.all_input_nodes]
        key = (*key, *(self._writes[root] for root in roots))
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            self._draws[key] += 1
            key = (*key, "draw", self._draws[key])
        number = self._numbering.of(key)
        self.actions.computed.append((number, len(self.actions.events), node))
        return number

    def _root(self, number: int) -> int:
        while number in self._memory:
            number = self._memory[number]
        return number


def _freeze(value: Any, known: Mapping[Node, Any]) -> Any:
    """Arguments as a key: the number of each node, constants as text."""
    if isinstance(value, Node):
        return known[value]
    if isinstance(value, (list, tuple)):
        return tuple(_freeze(part, known) for part in value)
    if isinstance(value, dict):
        return tuple((name, _freeze(part, known)) for name, part in value.items())
    if isinstance(value, slice):
        return _freeze((value.start, value.stop, value.step), known)
    return repr(value)
