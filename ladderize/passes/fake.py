"""Keep the fake values in a graph's `meta` true while passes change it.

    before   w: f32[48, 32]   linear(x, w): f32[2, 8, 48]      w replaced by its local half
    after    w: f32[24, 32]   linear(x, w): f32[2, 8, 24]

Only nodes that are new, were rewritten, or read something of another shape are run again, under the
fake mode of the graph's own inputs: symbolic sizes keep their meaning.
"""

import operator
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from ladderize import compat

KEYS = ("val", "example_value")


def replace_fake(node: Node, shape: Sequence[Any]) -> None:
    """Give an input another shape; dtype, device and need of gradients stay."""
    for key in KEYS:
        old = node.meta.get(key)
        if isinstance(old, torch.Tensor):
            with torch.no_grad(), compat.fake_mode_of([old]):
                node.meta[key] = old.new_empty(shape).requires_grad_(old.requires_grad)
    node.meta.pop("tensor_meta", None)


def propagate_fakes(gm: GraphModule, changed: Collection[Node]) -> None:
    """Recompute what depends on the `changed` nodes or has no value yet, in one pass."""
    stale = set(changed)
    mode = compat.fake_mode_of([node.meta.get("val") for node in gm.graph.nodes])
    for node in gm.graph.nodes:
        is_known = "val" in node.meta
        if (
            not isinstance(node.target, torch._ops.OpOverload)
            and node.target is not operator.getitem
        ):
            continue  # inputs, arithmetic on sizes, switches such as set_grad_enabled
        if is_known and node not in stale and stale.isdisjoint(node.all_input_nodes):
            continue
        with mode, torch.no_grad():
            value = _run(node)
        if not is_known or node in stale or signature(value) != signature(node.meta["val"]):
            stale.add(node)
            node.meta.update({key: value for key in KEYS if key in node.meta or key == "val"})
            node.meta.pop("tensor_meta", None)


def _run(node: Node) -> Any:
    def fake(source: Node) -> Any:
        return source.meta["val"]

    args, kwargs = map_arg(node.args, fake), map_arg(node.kwargs, fake)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def signature(value: Any) -> Any:
    """What a reader of `value` could notice: shapes, strides, dtypes."""
    if isinstance(value, torch.Tensor):
        return (tuple(map(str, value.shape)), tuple(map(str, value.stride())), value.dtype)
    if isinstance(value, (list, tuple)):
        return tuple(signature(part) for part in value)
    return str(value)
