"""Find equivalent calls of a Dynamo graph, so that one trace serves them all.

    q = linear(h, w0);  p = linear(g, w1)      alike if h is like g and w0 is like w1
    y = view(q, s0, 8); z = view(p, s0, 8)     alike: the sizes are the same expression

Calls are alike if they have the same target, constants and tensor properties.
"""

import operator
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from ladderize import compat
from ladderize.compat.dispatcher import set_grad_enabled
from ladderize.graph import ops

_CONSTANTS: tuple[type, ...] = (int, bool, str, type(None), type(...))
_CONSTANTS += (torch.dtype, torch.device, torch.layout, torch.memory_format)
HELD = (Tensor, torch.SymInt, torch.SymFloat)
"""Types of values that are nodes in a graph, not constants."""
Operand = tuple[Node, int]
"""A node and the index of a tensor or number in its flattened result."""


class UnlikeError(Exception):
    """A call cannot be copied: its arguments or results are neither tensors nor numbers."""


@dataclass(frozen=True, eq=False)
class DynamoCall:
    """One call of a Dynamo graph.

    Attributes:
        node: the call.
        is_grad_enabled: whether grad mode is enabled at the call.
        operands: distinct tensors and numbers among its arguments.
        values: fake values of `operands`.
        has_symbols: whether any of these is symbolic.
        form: number that is equal for calls that are alike.
    """

    node: Node
    is_grad_enabled: bool
    operands: Sequence[Operand]
    values: Sequence[Any]
    has_symbols: bool
    form: int

    def run(self, given: Mapping[int, Any]) -> Any:
        """Run the call with `given` in place of `values`, looked up by `id`."""

        def value(source: Node) -> Any:
            leaves, structure = flat(ops.value(source))
            return unflat([given.get(id(x), x) for x in leaves], structure)

        args, kwargs = map_arg((self.node.args, self.node.kwargs), value)
        return _function(self.node)(*args, **kwargs)


def read_calls(graph: Graph) -> dict[Node, DynamoCall]:
    """Read the calls of `graph`. This executes its changes of grad mode.

    Raises:
        UnlikeError: a call cannot be copied.
    """
    calls: dict[Node, DynamoCall] = {}
    forms: dict[Hashable, int] = {}
    for node in graph.nodes:
        if node.op in ("get_attr", "call_module"):
            raise UnlikeError
        if node.target is set_grad_enabled:
            set_grad_enabled(*node.args)
        elif node.op not in ("placeholder", "output") and not is_part(node):
            calls[node] = _read(node, forms)
    return calls


def is_part(node: Node) -> bool:
    """Whether `node` is a getitem on the tuple that a call returns."""
    source: Any = node.args[0] if node.args else None
    is_item = node.target is operator.getitem and isinstance(source, Node)
    return is_item and not isinstance(ops.value(source), Tensor)


def _read(node: Node, forms: dict[Hashable, int]) -> DynamoCall:
    operands: dict[int, Operand] = {}
    values: list[Any] = []
    for source in node.all_input_nodes:
        for index, leaf in enumerate(flat(ops.value(source))[0]):
            if isinstance(leaf, HELD) and id(leaf) not in operands:
                operands[id(leaf)] = source, index
                values.append(leaf)
    number = {value: i for i, value in enumerate(operands)}
    key = node.op, node.target, torch.is_grad_enabled(), _key((node.args, node.kwargs), number)
    form = forms.setdefault(key, len(forms))  # hashed once: it is large
    has_symbols = any(map(_is_symbolic, values))
    grad = torch.is_grad_enabled()
    return DynamoCall(node, grad, [*operands.values()], values, has_symbols, form)


def flat(value: Any) -> tuple[list[Any], pytree.TreeSpec]:
    """`tree_flatten` with a fast path for a single tensor."""
    return ([value], _LEAF) if isinstance(value, (Tensor, Node)) else pytree.tree_flatten(value)


def unflat(leaves: list[Any], structure: pytree.TreeSpec) -> Any:
    """As `tree_unflatten`, for a structure that `flat` returned."""
    return leaves[0] if structure is _LEAF else pytree.tree_unflatten(leaves, structure)


_LEAF = pytree.tree_structure(0)


def _is_symbolic(value: Any) -> bool:
    return not isinstance(value, Tensor) or not _are_ints((*value.shape, *value.stride()))


def _are_ints(sizes: Sequence[Any]) -> bool:
    return set(map(type, sizes)) <= {int}


def _key(value: Any, number: Mapping[int, int]) -> Hashable:
    """A key that is equal for the arguments of calls that are alike."""
    if isinstance(value, Node):
        return "node", _key(ops.value(value), number)
    if isinstance(value, Tensor):
        return number[id(value)], _key_of_tensor(value)
    if isinstance(value, torch.SymInt):
        return number[id(value)], _key_of_sizes([value])
    if isinstance(value, torch.SymFloat):
        return number[id(value)], torch.SymFloat  # no size depends on it
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


def _key_of_tensor(value: Tensor) -> Hashable:
    if value.layout is not torch.strided or compat.without_functorch(value) is not value:
        raise UnlikeError
    lies = _key_of_sizes((*value.shape, *value.stride(), value.storage_offset()))
    kind = value.dtype, value.device, value.requires_grad, value.is_conj(), value.is_neg()
    return lies, value.dim(), *kind, type(value)


def _key_of_sizes(sizes: Sequence[Any]) -> Hashable:
    if _are_ints(sizes):
        return tuple(sizes)
    if not all(map(compat.has_hint, sizes)):
        raise UnlikeError
    return ops.expressions(sizes)


def _function(node: Node) -> Callable[..., Any]:
    name = node.target
    if isinstance(name, str):
        return lambda tensor, *args, **kwargs: getattr(tensor, name)(*args, **kwargs)
    return name
