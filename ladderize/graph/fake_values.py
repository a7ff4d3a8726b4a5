"""Update the fake values in a graph's `meta` after passes change it.

    before   w: f32[48, 32]   linear(x, w): f32[2, 8, 48]      w replaced by its local half
    after    w: f32[24, 32]   linear(x, w): f32[2, 8, 24]

Only nodes that are new, were rewritten, or have operands of a changed shape run again. They run
under the fake mode of the graph's inputs, so symbolic sizes keep their meaning.
"""

import operator
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from ladderize import compat
from ladderize.compat.dispatcher import OpOverload
from ladderize.graph import ops
from ladderize.graph.writes import written_operands

KEYS = ("val", "example_value")


def replace_fake(node: Node, shape: Sequence[Any]) -> None:
    """Give an input another shape; dtype, device and `requires_grad` stay."""
    for key in KEYS:
        old = node.meta.get(key)
        if isinstance(old, torch.Tensor):
            node.meta[key] = compat.fake_of(old, shape)
    node.meta.pop("tensor_meta", None)


def new_fake(node: Node, alike: Node) -> None:
    """Give a new node a fake value like that of `alike`, with its own storage."""
    for key in KEYS:
        value = alike.meta.get(key)
        if isinstance(value, torch.Tensor):
            with torch.no_grad(), compat.fake_mode_of([value]):
                made = torch.empty_like(value)
            node.meta[key] = made.requires_grad_(value.requires_grad)


def propagate_fakes(gm: GraphModule, changed: Collection[Node]) -> None:
    """Recompute the values that depend on `changed` nodes or are missing, in one pass.

    A call does not run again if the same call ran on values of the same form (in another layer): a
    fake run takes a millisecond, and layers repeat. Such nodes share one fake value, except where
    the graph writes memory: each layer has its own cache.
    """
    own = _on_written_memory(gm)
    stale = set(changed)
    mode = compat.fake_mode_of([node.meta.get("val") for node in gm.graph.nodes])
    known: dict[Any, Any] = {}
    for node in gm.graph.nodes:
        if not isinstance(node.target, OpOverload) and node.target is not operator.getitem:
            continue  # inputs, arithmetic on sizes, switches such as set_grad_enabled
        if "val" in node.meta and node not in stale and stale.isdisjoint(node.all_input_nodes):
            continue
        args, kwargs = map_arg((node.args, node.kwargs), _fake)
        key = (node.target, signature(args), signature(kwargs), node if node in own else None)
        if key not in known:
            # Up to 2.11 aten.linear asks for concrete sizes without the Python dispatcher.
            with mode, torch.no_grad(), compat.python_dispatcher():
                known[key] = node.target(*args, **kwargs)
        value = known[key]
        if node in stale or signature(value) != signature(node.meta.get("val")):
            stale.add(node)
            node.meta.update({key: value for key in KEYS if key in node.meta or key == "val"})
            node.meta.pop("tensor_meta", None)


def _on_written_memory(gm: GraphModule) -> set[Node]:
    """The nodes that write memory, have written memory as their value, or read it."""
    writes = [(node, written_operands(node)) for node in gm.graph.nodes]
    written = {
        storage
        for node, operands in writes
        for touched in (operands and [node, *operands])
        for storage in ops.storages(touched)
    }
    if not written:
        return set()
    is_of_it = {node for node in gm.graph.nodes if not written.isdisjoint(ops.storages(node))}
    return {
        node for node in gm.graph.nodes if not is_of_it.isdisjoint({node, *node.all_input_nodes})
    }


def _fake(source: Node) -> Any:
    return source.meta["val"]


def signature(value: Any) -> Any:
    """A hashable key of everything that a reader sees: shapes, strides, dtypes, devices."""
    if isinstance(value, torch.Tensor):
        layout = map(ops.expressions, (value.shape, value.stride(), [value.storage_offset()]))
        return *layout, value.dtype, value.device
    if isinstance(value, dict):
        return tuple((name, signature(part)) for name, part in sorted(value.items()))
    if isinstance(value, (list, tuple)):
        return tuple(map(signature, value))
    return value.node.expr if isinstance(value, torch.SymInt) else value
