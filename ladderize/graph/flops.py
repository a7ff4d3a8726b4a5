"""FLOPs of nodes, used to find the middle of a block and to predict the time of a step."""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.fx import Node
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from ladderize import compat
from ladderize.graph import ops
from ladderize.graph.in_flight import is_launch
from ladderize.graph.ops import Kind


def work_of(node: Node) -> int:
    """FLOPs of a mixing op; its number of elements if torch has no formula; 0 for other ops.

    Collectives and ops that create or fill a tensor (`zeros`, `zero_`) count 0.

    Dynamic sizes have the values of the call being compiled.
    """
    if ops.kind(node) is not Kind.MIX or is_launch(node) or ops.makes_values(node):
        return 0
    packet = getattr(node.target, "overloadpacket", None)
    if packet not in flop_registry:
        return _num_results(node)
    call = packet, _form(node.args), _form(tuple(node.kwargs.items())), _form(node)
    try:
        return _work_of_form(*call)
    except TypeError:  # an argument that cannot be hashed
        return _work_of_form.__wrapped__(*call)


@dataclass(frozen=True)
class _Sizes:
    """The sizes of a tensor."""

    sizes: tuple[int, ...]


def _form(value: Any) -> Any:
    """The part of `value` that FLOP formulas read, hashable; nodes are replaced by their values."""
    if isinstance(value, Node):
        return _form(ops.value(value))
    if isinstance(value, torch.Tensor):
        return _Sizes(tuple(map(compat.hint, value.shape)))
    if isinstance(value, torch.SymInt):
        return compat.hint(value)
    if isinstance(value, (torch.SymFloat, torch.SymBool)):
        return None
    return tuple(map(_form, value)) if isinstance(value, (tuple, list)) else value


@functools.lru_cache(maxsize=4096)
def _work_of_form(packet: Any, args: Any, kwargs: Any, result: Any) -> int:
    """FLOPs by torch's formula. Cached: layers repeat, and making its arguments is slow."""

    def example(value: Any) -> Any:
        return torch.empty(value.sizes, device="meta") if isinstance(value, _Sizes) else value

    args, kwargs, result = pytree.tree_map(example, (args, kwargs, result))
    return int(flop_registry[packet](*args, **dict(kwargs), out_val=result))


def flops_of(node: Node) -> int:
    """FLOPs of a call in a graph of any dialect, before products are decomposed.

    They are counted as in `torch.utils.flop_counter`, which ignores the mask of causal attention.
    """
    work = work_of(node)
    formula = _BEFORE_AUTOGRAD.get(ops.op_name(node))
    is_known = getattr(node.target, "overloadpacket", None) in flop_registry
    if not work or formula is None or is_known:
        return work
    try:
        return formula(node)
    except (AttributeError, IndexError, KeyError, TypeError):
        return work  # unexpected operands: an estimate must not stop the compilation


def _product(node: Node, first: int = 0) -> int:
    """FLOPs of `node.args[first] @ …`: two for each product summed into a result element."""
    return 2 * _size(_operand(node, first)) // max(_rows(node, first), 1) * _num_results(node)


def _rows(node: Node, first: int) -> int:
    """Rows of a matrix operand: the product of all sizes but the last."""
    shape = [compat.hint(size) for size in _operand(node, first).shape]
    return math.prod(shape[:-1])


def _convolution(node: Node) -> int:
    """Each element of the result reads one filter: the weight divided by its output channels."""
    weight = _weight(node)
    return 2 * _num_results(node) * _size(weight) // compat.hint(weight.shape[0])


def _transposed_convolution(node: Node) -> int:
    """Each element of the input is multiplied by all weights of its channel."""
    weight = _weight(node)
    return 2 * _size(_operand(node, 0)) * _size(weight) // compat.hint(weight.shape[0])


def _attention(node: Node) -> int:
    """`q @ k^T` for each query and key, and the product of the scores with `v`."""
    *heads, queries, width = (compat.hint(size) for size in _operand(node, 0).shape)
    keys, value_width = (compat.hint(size) for size in _operand(node, 2).shape[-2:])
    return 2 * math.prod(heads) * queries * keys * (width + value_width)


def _attention_backward(node: Node) -> int:
    """FLOPs of `(grad, query, key, value, …)`: the scores are recomputed, then four gradients.

    These are five products of the size of the two in the forward pass.
    """
    query, key, value = (_operand(node, index) for index in (1, 2, 3))
    *heads, queries, width = (compat.hint(size) for size in query.shape)
    keys, value_width = compat.hint(key.shape[-2]), compat.hint(value.shape[-1])
    return 2 * math.prod(heads) * queries * keys * (3 * width + 2 * value_width)


def _counted(node: Node) -> int:
    """FLOPs by torch's `FlopCounterMode`, which is slow."""
    target: Any = node.target
    args, kwargs = torch.fx.node.map_arg((node.args, dict(node.kwargs)), _example)
    with FlopCounterMode(display=False) as counter:
        target(*args, **kwargs)
    return int(counter.get_total_flops())


_BEFORE_AUTOGRAD: Mapping[str, Callable[[Node], int]] = {
    **dict.fromkeys("linear matmul __matmul__ mm bmm".split(), _product),
    **dict.fromkeys("grouped_mm _grouped_mm grouped_mm_fallback".split(), _product),
    **dict.fromkeys("addmm baddbmm __rmatmul__".split(), partial(_product, first=1)),
    **dict.fromkeys("conv1d conv2d conv3d convolution".split(), _convolution),
    **dict.fromkeys(
        "conv_transpose1d conv_transpose2d conv_transpose3d".split(), _transposed_convolution
    ),
    "scaled_dot_product_attention": _attention,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
    "einsum": _counted,
}
_NAMES = {
    "matmul": ("input", "other"),
    "mm": ("input", "mat2"),
    "bmm": ("input", "mat2"),
    "addmm": ("input", "mat1", "mat2"),
    "baddbmm": ("input", "batch1", "batch2"),
    "scaled_dot_product_attention": ("query", "key", "value"),
    "_scaled_dot_product_flash_attention_for_cpu": ("query", "key", "value"),
    "_scaled_dot_product_flash_attention_for_cpu_backward": ("grad_out", "query", "key", "value"),
}


def _operand(node: Node, index: int) -> torch.Tensor:
    """The fake value of an operand, passed by position or by name.

    An operand with a name that is not in `_NAMES` is found by its position among all arguments.
    """
    name = _NAMES.get(ops.op_name(node), ("input", "weight"))[index]
    given: list[Any] = [*node.args, *node.kwargs.values()]
    is_named = index >= len(node.args) and name in node.kwargs
    operand: Any = node.kwargs[name] if is_named else given[index]
    found: torch.Tensor = ops.value(operand)
    return found


def _weight(node: Node) -> torch.Tensor:
    if node.op == "call_module":
        weight: torch.Tensor = ops.called_module(node).get_parameter("weight")
        return weight
    return _operand(node, 1)


def _num_results(node: Node) -> int:
    return sum(map(_size, ops.tensors(node)))


def _size(tensor: torch.Tensor) -> int:
    return compat.hint(tensor.numel())


def _example(node: Node) -> Any:
    found = [_at_hint(tensor) for tensor in ops.tensors(node)]
    return found if isinstance(ops.value(node), (tuple, list)) else (found or [ops.value(node)])[0]


def _at_hint(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty([compat.hint(size) for size in tensor.shape], device="meta")
