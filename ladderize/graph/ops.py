"""The op vocabulary, which is the same for Dynamo, ATen and module graphs.

An op is an *add*, a *layout* op (only rearranges elements: view, permute, …), a *cheap* op
(pointwise, norm, cast, dropout, reduction) or else a *mixing* op (linear, matmul, convolution,
attention, a higher-order op, a custom op).
"""

import enum
import functools
import inspect
import operator
import re
from collections.abc import Iterable
from typing import Any

import sympy
import torch
from torch import nn
from torch.fx import Graph, Node

from ladderize import compat
from ladderize.compat.dispatcher import HigherOrderOperator, OpOverload, memory_id


class Kind(enum.Enum):
    ADD = "add"
    LAYOUT = "layout"
    CHEAP = "cheap"
    MIX = "mix"


_ADDS = frozenset({"add", "iadd", "add_"})
_LAYOUTS = frozenset(
    """view reshape _unsafe_view view_as reshape_as permute transpose t swapaxes swapdims
    movedim unsqueeze squeeze flatten unflatten expand expand_as contiguous getitem slice select
    narrow chunk split split_with_sizes tensor_split unbind repeat repeat_interleave flip roll
    cat concat concatenate stack pad clone alias detach requires_grad_""".split()
)
_CHEAP = frozenset(
    """layer_norm native_layer_norm rms_norm _fused_rms_norm group_norm native_group_norm
    batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training
    _native_batch_norm_legit_functional _batch_norm_with_update native_batch_norm
    cudnn_batch_norm instance_norm normalize to float half bfloat16 double type type_as _to_copy
    convert_element_type dropout native_dropout feature_dropout alpha_dropout dropout2d mean sum
    var std var_mean norm vector_norm linalg_vector_norm amax amin max min softmax _softmax
    log_softmax _log_softmax _safe_softmax truediv div floordiv mod mul sub rsub neg pow and or xor
    lshift rshift gelu relu silu tanh sigmoid masked_fill where clamp copy copy_ wait
    wait_tensor""".split()
)


# Cheap ops that preserve a value up to a factor.
_SCALES = frozenset(
    """mul div truediv neg to float half bfloat16 double type type_as _to_copy dropout
    native_dropout convert_element_type""".split()
)
_FORM_ONLY = frozenset(
    """zeros_like ones_like empty_like full_like rand_like randn_like new_zeros new_ones new_empty
    new_full new_empty_strided""".split()
)


# Dynamo's names of DTensor methods up to torch 2.11: "prim from_local", "prim_to_local".
_DTENSOR_PREFIX = re.compile(r"^prim[ _](?=from_local|redistribute|to_local)")


def op_name(node: Node) -> str:
    """The dialect-free name of a call: `torch.add`, `operator.add`, `aten.add.Tensor` → "add".

    A module of `torch.nn` has the name of its function: `nn.LayerNorm` → "layer_norm".
    """
    target: Any = node.target
    if node.op == "call_module":
        return _name_of_module(type(called_module(node)))  # type: ignore[arg-type]  # classes hash
    if node.op == "call_method":
        return str(target)
    if node.op != "call_function":
        return ""
    if isinstance(target, OpOverload):
        return _name_of_overload(target)
    name = str(getattr(target, "__name__", target))
    if getattr(target, "__module__", "") == operator.or_.__module__:
        return name.rstrip("_")  # operator.or_ writes nothing
    return _DTENSOR_PREFIX.sub("", name)


def reads_no_values(node: Node) -> bool:
    """Whether a call reads only the shape, dtype and device of its operands."""
    return op_name(node) in _FORM_ONLY


def makes_values(node: Node) -> bool:
    """Whether a call creates or fills a tensor without reading values of another."""
    is_filled = op_name(node) in ("zero_", "fill_")
    return is_filled or reads_no_values(node) or not any(map(holds_tensor, node.all_input_nodes))


def only_scales(node: Node) -> bool:
    """Whether a call only scales, casts, drops out or rearranges the values of an operand."""
    return kind(node) is Kind.LAYOUT or op_name(node).rstrip("_") in _SCALES


def called_module(node: Node) -> nn.Module:
    """The module that a `call_module` node calls."""
    gm = node.graph.owning_module
    assert gm is not None
    return gm.get_submodule(str(node.target))


@functools.cache
def _name_of_overload(target: OpOverload) -> str:
    return str(target._schema.name.split("::")[-1])


@functools.cache
def _name_of_module(module: Any) -> str:
    name = str(module.__name__)
    if not module.__module__.startswith("torch.nn."):
        return name
    if module is nn.Identity:
        return "alias"
    functions = {
        name.replace("_", ""): name
        for name in (*dir(nn.functional), *_LAYOUTS)
        if not name.endswith("_")
    }
    name = name.lower()
    return functions.get(name) or functions.get(re.sub(r"\dd$", "", name)) or name


def kind(node: Node) -> Kind | None:
    """The kind of op that `node` calls; None for placeholders, attributes and the output."""
    target = node.target
    if isinstance(target, OpOverload):  # first, because most nodes of large graphs call one
        found = _kind_of_overload(target)
    elif node.op in ("placeholder", "get_attr", "output"):
        return None
    elif isinstance(target, HigherOrderOperator):
        return Kind.MIX  # checked last: isinstance with an abstract base class is slow
    else:
        found = _kind_of_name(op_name(node))
    # Adding a number, or a value to itself, is an ordinary pointwise op.
    return Kind.CHEAP if found is Kind.ADD and len(node.all_input_nodes) < 2 else found


@functools.cache
def _kind_of_overload(target: OpOverload) -> Kind:
    return _kind_of_name(_name_of_overload(target))


@functools.cache
def _kind_of_name(name: str) -> Kind:
    functional = (name.strip("_") if name.startswith("__") else name.rstrip("_")) or name
    for names, result in ((_ADDS, Kind.ADD), (_LAYOUTS, Kind.LAYOUT), (_CHEAP, Kind.CHEAP)):
        if name in names or functional in names:
            return result
    return Kind.CHEAP if _is_pointwise(functional) else Kind.MIX


def _is_pointwise(name: str) -> bool:
    packet = getattr(torch.ops.aten, name, None)
    if packet is None or not hasattr(packet, "overloads"):
        return False
    return any(torch.Tag.pointwise in getattr(packet, o).tags for o in packet.overloads())


# ---- in-place calls --------------------------------------------------------------------------

_IN_PLACE_OPERATORS = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    operator.imod: operator.mod,
    operator.ipow: operator.pow,
    operator.iand: operator.and_,
    operator.ior: operator.or_,
    operator.ixor: operator.xor,
    operator.ilshift: operator.lshift,
    operator.irshift: operator.rshift,
}
"""Python's in-place operators for tensors; `@=` has no in-place form there."""


def first_argument(node: Node) -> Any:
    """The first argument of a call, by position or as `input=`; None if it has none."""
    return node.args[0] if node.args else node.kwargs.get("input", node.kwargs.get("self"))


def functional_form(node: Node) -> tuple[Any, tuple[Any, ...], dict[str, Any]] | None:
    """Target and arguments of the out-of-place form of an in-place call; None for other calls.

    For a module that works in place, the caller has to add the new module to the graph module.
    """
    if op_name(node) == "copy_" and (copied := _what_is_copied(node)) is not None:
        clone = torch.ops.aten.clone.default if isinstance(node.target, OpOverload) else torch.clone
        return "clone" if node.op == "call_method" else clone, (copied,), {}
    if node.op == "call_module":
        is_in_place = getattr(called_module(node), "inplace", False) is True
        twin: Any = f"{node.target}_out_of_place" if is_in_place else None
    elif node.op == "call_method":
        twin = _functional_method(str(node.target))
    elif node.op == "call_function":
        if (arguments := _without_inplace_flag(node)) is not None:
            return node.target, *arguments
        twin = _functional_function(node.target)
    else:
        twin = None
    return None if twin is None else (twin, node.args, dict(node.kwargs))


def _what_is_copied(node: Node) -> Node | None:
    """The source of a `copy_` with the target's shape, dtype and device, else None."""
    written, copied = (*node.args, None, None)[:2]
    if not isinstance(written, Node) or not isinstance(copied, Node):
        return None
    found = [value(written), value(copied)]
    if not all(isinstance(each, torch.Tensor) for each in found):
        return None
    looks = {(expressions(each.shape), each.dtype, each.device) for each in found}
    return copied if len(looks) == 1 else None


def _out_of_place(name: str) -> str | None:
    """`add_` -> `add`, `__ior__` -> `__or__`; None for other names."""
    if name.startswith("__i") and name.endswith("__"):
        return f"__{name[3:]}"
    return name[:-1] if name.endswith("_") and not name.endswith("__") else None


def _functional_method(name: str) -> str | None:
    twin = _out_of_place(name)
    # `requires_grad` is an attribute, not the functional form of `requires_grad_`.
    has_twin = hasattr(torch.Tensor, name) and callable(getattr(torch.Tensor, twin or "", None))
    return twin if has_twin else None


def _functional_function(target: Any) -> Any:
    if target in _IN_PLACE_OPERATORS:
        return _IN_PLACE_OPERATORS[target]
    if isinstance(target, OpOverload):
        namespace, name = target._schema.name.split("::")
        twin = _out_of_place(name)
        if namespace != "aten" or twin is None:
            return None
        return getattr(getattr(torch.ops.aten, twin, None), target._overloadname, None)
    name = str(getattr(target, "__name__", ""))
    if not name.endswith("_") or name.endswith("__"):
        return None
    for owner in (torch, torch.nn.functional):
        if getattr(owner, name, None) is target:
            return getattr(owner, name[:-1], None)
    return None


def _without_inplace_flag(node: Node) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Arguments of a `torch.nn.functional` call with `inplace=True` changed to False; else None."""
    target: Any = node.target
    if getattr(target, "__module__", "") != "torch.nn.functional":
        return None
    try:
        bound = inspect.signature(target).bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):  # no Python signature
        return None
    if bound.arguments.get("inplace") is not True:
        return None
    bound.arguments["inplace"] = False
    return bound.args, dict(bound.kwargs)


def cast(graph: Graph, node: Node, dtype: torch.dtype | None, like: Node) -> Node:
    """Insert a cast of `node` at the insertion point of `graph`, in the dialect of `like`."""
    if isinstance(like.target, OpOverload):
        return graph.call_function(torch.ops.aten.to.dtype, (node, dtype))
    return graph.call_method("to", (node, dtype))


# ---- values ----------------------------------------------------------------------------------


def value(node: Node) -> Any:
    """The fake value of `node`: Dynamo keeps it as `example_value`, ATen graphs as `val`."""
    return node.meta["val"] if "val" in node.meta else node.meta.get("example_value")


def holds_tensor(node: Node) -> bool:
    """Whether the value of `node` is a tensor or a collection with one (unknown counts as yes)."""
    found = value(node)
    if found is None:
        return node.op not in ("output",) and "val" not in node.meta
    if isinstance(found, (tuple, list)):
        return any(isinstance(item, torch.Tensor) for item in found)
    return isinstance(found, torch.Tensor)


def tensors(node: Node) -> list[torch.Tensor]:
    """The (fake) tensors in the value of `node`: one, several or none."""
    found = value(node)
    items = found if isinstance(found, (tuple, list)) else [found]
    return [item for item in items if isinstance(item, torch.Tensor)]


def storages(node: Node) -> set[int]:
    """Identities of the storages of the value of `node`; a view shares that of its base."""
    return {memory_id(compat.without_functorch(tensor)) for tensor in tensors(node)}


def floating_shape(node: Node) -> tuple[Any, ...] | None:
    """Sizes of a floating tensor as ints and sympy expressions; None for any other value."""
    found = value(node)
    if not isinstance(found, torch.Tensor) or not found.is_floating_point():
        return None
    return expressions(found.shape)


def expressions(sizes: Iterable[Any]) -> tuple[Any, ...]:
    """Sizes as ints and sympy expressions, which compare structurally."""
    return tuple([size if type(size) is int else _expression(size) for size in sizes])


def num_elements(shape: Iterable[Any]) -> Any:
    """Product of sizes, as an int or a sympy expression that compares structurally."""
    return sympy.prod(list(shape))


def _expression(size: Any) -> Any:
    return size.node.expr if isinstance(size, torch.SymInt) else int(size)
