"""Translate Dynamo's calls to ATen, tracing each distinct call once.

    layer 0   q = linear(h, w0)    → traced: aten.linear.default(a, b)
    layer 1   p = linear(g, w1)    → copied: aten.linear.default(g, w1)

`call_forms.py` finds calls that are alike. A model of many equal layers then costs little more
than one layer. The results of a call keep the fake values that Dynamo computed. Other nodes of a
template share one fake value across its copies, unless the graph writes to tensors in place.
"""

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg
from torch.fx.traceback import annotate, preserve_node_meta
from torch.utils import _pytree as pytree

from ladderize import compat
from ladderize.compat.dispatcher import OpOverload, set_grad_enabled
from ladderize.graph import ops
from ladderize.graph.call_forms import (
    HELD,
    DynamoCall,
    UnlikeError,
    flat,
    is_part,
    read_calls,
    unflat,
)
from ladderize.graph.higher_order import REGION
from ladderize.graph.schemas import writes_nothing

_CARRIED = (REGION, "nn_module_stack", "stack_trace", "source_fn_stack", "custom")
_CALL = "ladderize_call"


@dataclass(frozen=True)
class CallTemplate:
    """One call, traced to ATen.

    Attributes:
        inputs: placeholders, one for each operand of the call.
        nodes: ATen calls, in order.
        results: nodes and constants that the call returns, flattened.
        structure: tree structure of the results.
        written: for each input written in place, the node that replaces it from then on.
    """

    inputs: Sequence[Node]
    nodes: Sequence[Node]
    results: Sequence[Any]
    structure: Any
    written: Mapping[Node, Node]


def spell_calls(gm: GraphModule) -> GraphModule | None:
    """Translate `gm` to ATen, with fake values in `meta["val"]`. No code is generated.

    Returns:
        The ATen graph. None if the graph has to be traced as a whole: it has data-dependent
        sizes, or calls other than ops.
    """
    aten = GraphModule(gm, Graph())
    try:
        with torch.set_grad_enabled(torch.is_grad_enabled()):  # calls of `gm` may change it
            calls = read_calls(gm.graph)
        _Speller(aten.graph, calls).spell(gm.graph)
    except UnlikeError:
        return None
    return aten


class _Speller:
    """Builds the graph. `_spelled` maps Dynamo's nodes to (nested) ATen nodes and constants."""

    def __init__(self, graph: Graph, calls: Mapping[Node, DynamoCall]) -> None:
        self._graph, self._calls = graph, calls
        self._templates = _trace_each({call.form: call for call in calls.values()})
        nodes = (node for template in self._templates.values() for node in template.nodes)
        self._has_writes = not all(map(_writes_nothing, nodes))
        self._spelled: dict[Node, Any] = {}
        self._latest: dict[Node, Node] = {}

    def spell(self, graph: Graph) -> None:
        for node in graph.nodes:
            if node.op == "placeholder":
                self._spelled[node] = self._graph.placeholder(node.name)
                self._spelled[node].meta["val"] = ops.value(node)
            elif node.op == "output":
                self._graph.output(map_arg(node.args[0], self._resolve))
            elif node.target is set_grad_enabled:
                self._graph.call_function(set_grad_enabled, node.args)
            elif is_part(node):
                self._spelled[node] = self._spelled[node.args[0]][node.args[1]]
            else:
                self._spelled[node] = self._copy(self._templates[self._calls[node].form], node)

    def _resolve(self, node: Node) -> Any:
        return pytree.tree_map_only(Node, self._now, self._spelled[node])

    def _now(self, node: Node) -> Node:
        """The latest node for the value of `node`, after in-place writes."""
        while node in self._latest:
            node = self._latest[node]
        return node

    def _copy(self, template: CallTemplate, origin: Node) -> Any:
        call = self._calls[origin]
        copies: dict[Node, Node] = {}
        for node, (source, index) in zip(template.inputs, call.operands, strict=True):
            copies[node] = self._now(flat(self._spelled[source])[0][index])
        given = frozenset(copies)
        for node in template.nodes:
            copied = copies[node] = self._graph.node_copy(node, copies.__getitem__)
            copied.meta = {key: origin.meta[key] for key in _CARRIED if key in origin.meta}
            copied.meta["val"] = self._value(template, node, copied, call.is_grad_enabled)
        return self._returned(template, copies, given, origin)

    def _value(self, template: CallTemplate, node: Node, copied: Node, has_gradients: bool) -> Any:
        if not self._has_writes or len(template.nodes) == 1:
            return node.meta["val"]
        args, kwargs = map_arg((copied.args, copied.kwargs), lambda source: source.meta["val"])
        with torch.set_grad_enabled(has_gradients), compat.python_dispatcher():
            return copied.target(*args, **kwargs)  # type: ignore[operator]  # a call of an op

    def _returned(
        self,
        template: CallTemplate,
        copies: Mapping[Node, Node],
        given: frozenset[Node],
        origin: Node,
    ) -> Any:
        values, structure = flat(ops.value(origin))
        if structure != template.structure:
            raise UnlikeError
        for node, value in zip(template.results, values, strict=True):
            if isinstance(node, Node) != isinstance(value, HELD):
                raise UnlikeError
            if isinstance(node, Node) and node not in given:
                copies[node].meta["val"] = value
        for source, node in template.written.items():
            self._latest[copies[source]] = copies[node]
        results = [copies[r] if isinstance(r, Node) else r for r in template.results]
        return unflat(results, template.structure)


def _trace_each(calls: Mapping[int, DynamoCall]) -> dict[int, CallTemplate]:
    """Trace the templates of distinct calls."""
    return {
        form: template
        for batch in _batches(calls)
        for form, template in zip(batch, _trace([calls[form] for form in batch]), strict=True)
    }


def _batches(calls: Mapping[int, DynamoCall]) -> Iterator[list[int]]:
    """Group the forms of calls that can be traced together, which is much faster.

    No two calls of a batch share an operand: an op that returns its operand (`to`, in-place ops)
    replaces it in the rest of the trace. A call with symbolic sizes is traced alone, as a trace
    has one node for each symbolic size.
    """
    batches: list[tuple[bool, set[int], list[int]]] = []
    for form, call in calls.items():
        if call.has_symbols:
            yield [form]
            continue
        given = set(map(id, call.values))
        for is_enabled, taken, batch in batches:
            if is_enabled is call.is_grad_enabled and taken.isdisjoint(given):
                taken |= given
                batch.append(form)
                break
        else:
            batches.append((call.is_grad_enabled, given, [form]))
    yield from (batch for _, _, batch in batches)


def _trace(calls: Sequence[DynamoCall]) -> list[CallTemplate]:
    values = {id(value): value for call in calls for value in call.values}
    returned: list[tuple[list[Any], Any]] = []

    def run(*traced: Any) -> list[list[Any]]:
        given = dict(zip(values, traced, strict=True))
        for index, call in enumerate(calls):
            with annotate({_CALL: index}):
                returned.append(flat(call.run(given)))
        return [
            [leaf for leaf in leaves if isinstance(leaf, HELD)]
            + [given[id(value)] for value in call.values]
            for call, (leaves, _) in zip(calls, returned, strict=True)
        ]

    with preserve_node_meta(), torch.set_grad_enabled(calls[0].is_grad_enabled):
        graph = make_fx(run, pre_dispatch=True, tracing_mode="real")(*values.values()).graph
    (output,) = graph.find_nodes(op="output")
    if not all(map(_can_be_copied, graph.nodes)):
        raise UnlikeError
    inputs = dict(zip(values, graph.find_nodes(op="placeholder"), strict=True))
    nodes = _nodes_by_call(graph, len(calls))
    return [
        _template(call, inputs, nodes[i], output.args[0][i], returned[i])
        for i, call in enumerate(calls)
    ]


def _nodes_by_call(graph: Graph, count: int) -> list[list[Node]]:
    nodes: list[list[Node]] = [[] for _ in range(count)]
    for node in graph.nodes:
        if node.op == "call_function":
            only = 0 if count == 1 else None  # returned sizes are read outside of `annotate`
            index = node.meta.get("custom", {}).get(_CALL, only)
            if index is None:
                raise UnlikeError
            nodes[index].append(node)
    return nodes


def _template(
    call: DynamoCall,
    inputs: Mapping[int, Node],
    nodes: Sequence[Node],
    outputs: Sequence[Any],
    returned: tuple[Sequence[Any], Any],
) -> CallTemplate:
    """
    Args:
        outputs: outputs of the trace: the results that are not constants, then the operands.
        returned: flattened results of the call, and their tree structure.
    """
    leaves, structure = returned
    found = iter(outputs)
    results = [next(found) if isinstance(x, HELD) else x for x in leaves]
    own = [inputs[id(value)] for value in call.values]
    written: dict[Node, Node] = {}
    if not all(map(_writes_nothing, nodes)):  # otherwise it returns its operand, as `to` may
        written = {x: node for x, node in zip(own, found, strict=True) if node is not x}
    return CallTemplate(own, nodes, results, structure, written)


def _can_be_copied(node: Node) -> bool:
    if node.op in ("placeholder", "output") or node.target is operator.getitem:
        return True
    if isinstance(node.target, OpOverload):
        return torch.Tag.inplace_view not in node.target.tags
    return getattr(node.target, "__module__", "") == operator.add.__module__


def _writes_nothing(node: Node) -> bool:
    return not isinstance(node.target, OpOverload) or writes_nothing(node.target)
