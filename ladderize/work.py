"""How much an ATen node computes: what it takes to find the middle of a block."""

from typing import Any

import torch
from torch.fx import Node
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from ladderize import compat, ops
from ladderize.inflight import is_launch
from ladderize.ops import Kind


def work_of(node: Node) -> int:
    """FLOPs of a mixing op (of a kind that torch cannot count: its elements); 0 of all others.

    Collectives compute nothing.

    Dynamic sizes count with those of the call that is compiled for.
    """
    if ops.kind(node) is not Kind.MIX or is_launch(node):
        return 0
    elements = sum(tensor.numel() for tensor in map(_at_hint, ops.tensors(node)))
    formula = flop_registry.get(getattr(node.target, "overloadpacket", None))
    if formula is None:
        return elements
    args, kwargs = torch.fx.node.map_arg((node.args, dict(node.kwargs)), _example)
    return int(formula(*args, **kwargs, out_val=_example(node)))


def flops_of(node: Node) -> int:
    """FLOPs of a call in a graph before autograd, where products are not decomposed yet."""
    if getattr(node.target, "overloadpacket", None) not in _COMPOSITE:
        return work_of(node)
    args, kwargs = torch.fx.node.map_arg((node.args, dict(node.kwargs)), _example)
    with FlopCounterMode(display=False) as counter:
        node.target(*args, **kwargs)  # type: ignore[operator]
    return int(counter.get_total_flops())


_aten = torch.ops.aten
_COMPOSITE = {
    _aten.linear,
    _aten.matmul,
    _aten.einsum,
    _aten.conv1d,
    _aten.conv2d,
    _aten.scaled_dot_product_attention,
}


def _example(node: Node) -> Any:
    found = [_at_hint(tensor) for tensor in ops.tensors(node)]
    return found if isinstance(ops.value(node), (tuple, list)) else (found or [ops.value(node)])[0]


def _at_hint(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty([compat.hint(size) for size in tensor.shape], device="meta")
