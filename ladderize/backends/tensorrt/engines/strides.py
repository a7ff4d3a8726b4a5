"""Pass tensors that are not contiguous into and out of engines, which take contiguous ones.

    island     y[2, 4, 16, 8] in memory as [2, 16, 4, 8]
    engine     returns y.permute(0, 2, 1, 3), which is contiguous
    outside    y = that.permute(0, 2, 1, 3): a view, with the strides that the graph was traced for

Otherwise inputs would be copied at each call, and views of outputs outside of the island might not
be possible.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ladderize import compat

_permute = torch.ops.aten.permute.default
Order = tuple[int, ...]


@dataclass(frozen=True)
class Layouts:
    """Memory layouts of inputs and outputs: dims from slowest to fastest, or None if in order."""

    inputs: tuple[Order | None, ...]
    outputs: tuple[Order | None, ...]

    def enter(self, inputs: Sequence[Any]) -> list[Any]:
        """The island's inputs, permuted as its graph takes them."""
        return [_permuted(value, o) for value, o in zip(inputs, self.inputs, strict=True)]

    def leave(self, outputs: Sequence[Any]) -> tuple[Any, ...]:
        """The graph's outputs, with the strides of the island's outputs."""
        backward = (None if order is None else inverse(order) for order in self.outputs)
        return tuple(_permuted(value, o) for value, o in zip(outputs, backward, strict=True))


def make_contiguous(gm: GraphModule, inputs: Sequence[Any], outputs: Sequence[Any]) -> Layouts:
    """Make `gm` take and return contiguous tensors for values with the layouts of these."""
    layouts = Layouts(tuple(map(memory_order, inputs)), tuple(map(memory_order, outputs)))
    placeholders = gm.graph.find_nodes(op="placeholder")
    for node, order in zip(placeholders, layouts.inputs, strict=True):
        if order is not None:
            with gm.graph.inserting_after(placeholders[-1]):
                view = _call_permute(gm, node, inverse(order))
            view.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(view, delete_user_cb=lambda user, own=view: user is not own)
            node.meta = node.meta | {"val": node.meta["val"].permute(order)}
    result = gm.graph.output_node()
    returned = list(result.args[0])  # type: ignore[arg-type]  # a tuple, as of every island
    for index, order in enumerate(layouts.outputs):
        node = returned[index]
        if order is not None and isinstance(node, Node):
            with gm.graph.inserting_before(result):
                returned[index] = _call_permute(gm, node, order)
            returned[index].meta["val"] = node.meta["val"].permute(order).contiguous()
    result.args = (tuple(returned),)
    return layouts


def memory_order(value: Any) -> Order | None:
    """Dims from the slowest to the fastest; None if they are in order, or do not fill memory."""
    if not isinstance(value, torch.Tensor):
        return None
    shape, strides = map(_hints, (value.shape, value.stride()))
    order = tuple(sorted(range(value.dim()), key=lambda dim: (-strides[dim], shape[dim] != 1, dim)))
    filled = 1
    for dim in reversed(order):
        if shape[dim] != 1 and strides[dim] != filled:
            return None
        filled *= shape[dim]
    moved = [dim for dim in order if shape[dim] != 1]
    return None if moved == sorted(moved) else order


def inverse(order: Order) -> Order:
    return tuple(order.index(dim) for dim in range(len(order)))


def _permuted(value: Any, order: Order | None) -> Any:
    return value if order is None else value.permute(order)


def _call_permute(gm: GraphModule, node: Node, order: Order) -> Node:
    view = gm.graph.call_function(_permute, (node, list(order)))
    view.meta = {
        key: node.meta[key] for key in ("stack_trace", "nn_module_stack") if key in node.meta
    }
    return view


def _hints(sizes: Sequence[int | torch.SymInt]) -> list[int]:
    return [compat.hint(size) for size in sizes]
