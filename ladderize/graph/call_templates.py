"""Dynamo's calls spelled in ATen, where each distinct call is traced once.

    layer 0   q = linear(h, w0)    → traced: aten.linear.default(a, b)
    layer 1   p = linear(g, w1)    → copied: aten.linear.default(g, w1)

Calls are alike if target, constants, and what is known of their tensors are the same. A model of
many alike layers then costs hardly more than one of them. A call has the value that Dynamo has
found for it; what else there is in its template shares one value with all calls that are alike.
"""

import operator
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_aggregate
from torch.utils import _pytree as pytree

from ladderize.compat.dispatcher import OpOverload, set_grad_enabled
from ladderize.graph import ops
from ladderize.graph.higher_order import REGION

_CARRIED = (REGION, "nn_module_stack", "stack_trace", "source_fn_stack", "custom")
_CONSTANTS: tuple[type, ...] = (int, bool, str, type(None), type(...))
_CONSTANTS += (torch.dtype, torch.device, torch.layout, torch.memory_format)


class UnlikeError(Exception):
    """A call that cannot be copied: it writes, or is given or holds what is no tensor."""


@dataclass(frozen=True)
class CallTemplate:
    """One call in ATen.

    Attributes:
        graph: its inputs are the tensors that the call is given.
        results: nodes of it and constants, all that the call returns.
        structure: how they are nested.
    """

    graph: Graph
    results: Sequence[Any]
    structure: Any


def spell_calls(gm: GraphModule) -> GraphModule | None:
    """The ATen graph of `gm`, with fake values in `meta["val"]`.

    Returns:
        None for a graph that has to be traced whole: with symbolic sizes, with writes into
        tensors, or with calls of anything but ops.
    """
    if not all(map(_is_plain, gm.graph.nodes)):
        return None
    try:
        with torch.set_grad_enabled(torch.is_grad_enabled()):  # calls of `gm` may change it
            return GraphModule(gm, _Speller().spell(gm.graph))
    except UnlikeError:
        return None


def _is_plain(node: Node) -> bool:
    values = pytree.tree_leaves(ops.value(node))
    return node.op not in ("get_attr", "call_module") and not any(map(_is_symbolic, values))


def _is_symbolic(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not all(type(size) is int for size in (*value.shape, *value.stride()))
    return isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool))


class _Speller:
    """Makes the graph; `spelled` has for Dynamo's nodes their nodes and constants, nested."""

    def __init__(self) -> None:
        self._graph = Graph()
        self._templates: dict[Hashable, CallTemplate] = {}
        self._spelled: dict[Node, Any] = {}

    def spell(self, graph: Graph) -> Graph:
        for node in graph.nodes:
            if node.op == "placeholder":
                self._spelled[node] = self._graph.placeholder(node.name)
                self._spelled[node].meta["val"] = ops.value(node)
            elif node.op == "output":
                self._graph.output(self._resolve(node.args[0]))
            else:
                self._spelled[node] = self._call(node)
        return self._graph

    def _resolve(self, value: Any) -> Any:
        return _replace(value, self._spelled.__getitem__)

    def _call(self, node: Node) -> Any:
        args, kwargs = self._resolve(node.args), self._resolve(node.kwargs)
        if node.target is operator.getitem and not isinstance(args[0], Node):
            return args[0][args[1]]
        if node.target is set_grad_enabled:
            set_grad_enabled(*args)
            return self._graph.call_function(set_grad_enabled, args)
        operands = list(dict.fromkeys(_nodes_in((args, kwargs))))
        number = {operand: i for i, operand in enumerate(operands)}
        key = node.op, node.target, torch.is_grad_enabled(), _key((args, kwargs), number)
        if key not in self._templates:
            self._templates[key] = _trace(node, args, kwargs, operands)
        return self._copy(self._templates[key], operands, node)

    def _copy(self, template: CallTemplate, operands: Sequence[Node], origin: Node) -> Any:
        inputs = template.graph.find_nodes(op="placeholder")
        copies: dict[Node, Node] = dict(zip(inputs, operands, strict=True))
        for node in template.graph.nodes:
            if node.op != "call_function":
                continue
            copied = copies[node] = self._graph.node_copy(node, copies.__getitem__)
            copied.meta = {key: origin.meta[key] for key in _CARRIED if key in origin.meta}
            copied.meta["val"] = node.meta["val"]
        if len(template.results) == 1 and template.results[0] in copies.keys() - set(inputs):
            copies[template.results[0]].meta["val"] = ops.value(origin)
        results = [copies[r] if isinstance(r, Node) else r for r in template.results]
        return pytree.tree_unflatten(results, template.structure)


def _replace(value: Any, by: Callable[[Node], Any]) -> Any:
    """`value` with something in the place of each node."""
    return map_aggregate(value, lambda leaf: by(leaf) if isinstance(leaf, Node) else leaf)


def _nodes_in(value: Any) -> list[Node]:
    found: list[Node] = []
    _replace(value, found.append)
    return found


def _key(value: Any, number: Mapping[Node, int]) -> Hashable:
    """What two calls that are alike have in common."""
    if isinstance(value, Node):
        return number[value], _key_of_tensor(value.meta["val"])
    if isinstance(value, (tuple, list)):
        return type(value).__name__, tuple(_key(each, number) for each in value)
    if isinstance(value, dict):
        return tuple((name, _key(each, number)) for name, each in value.items())
    if isinstance(value, slice):
        return "slice", _key((value.start, value.stop, value.step), number)
    if isinstance(value, float):
        return float, repr(value)  # 0.0 equals -0.0
    if isinstance(value, _CONSTANTS):
        return type(value), value
    raise UnlikeError


def _key_of_tensor(value: Any) -> Hashable:
    if not isinstance(value, Tensor) or value.layout is not torch.strided:
        raise UnlikeError
    lies = tuple(value.shape), value.stride(), value.storage_offset()
    kind = value.dtype, value.device, value.requires_grad, value.is_conj(), value.is_neg()
    return *lies, *kind, type(value)


def _trace(node: Node, args: Any, kwargs: Any, operands: Sequence[Node]) -> CallTemplate:
    returned: list[Any] = []

    def call(*tensors: Tensor) -> list[Tensor]:
        given = dict(zip(operands, tensors, strict=True)).__getitem__
        found = _function(node)(*_replace(args, given), **_replace(kwargs, given))
        leaves, structure = pytree.tree_flatten(found)
        returned.extend((leaves, structure))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    values = [operand.meta["val"] for operand in operands]
    graph = make_fx(call, pre_dispatch=True, tracing_mode="real")(*values).graph
    (output,) = graph.find_nodes(op="output")
    if not all(map(_can_be_copied, graph.nodes)):
        raise UnlikeError
    tensors = iter(output.args[0])
    leaves, structure = returned
    results = [next(tensors) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    return CallTemplate(graph, results, structure)


def _function(node: Node) -> Callable[..., Any]:
    name = node.target
    if isinstance(name, str):
        return lambda tensor, *args, **kwargs: getattr(tensor, name)(*args, **kwargs)
    return name


def _can_be_copied(node: Node) -> bool:
    if node.op in ("placeholder", "output") or node.target is operator.getitem:
        return True
    return isinstance(node.target, OpOverload) and not node.target._schema.is_mutable
