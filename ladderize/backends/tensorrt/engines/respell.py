"""Rewrite an island into ops that Torch-TensorRT converts correctly.

    before   v = view(x, …);  o = getitem(_scaled_dot_product_flash_attention_for_cpu(q, k, v), 0)
    after    v = _reshape_copy(x, …);  o = scaled_dot_product_attention(q, k, v)

Placeholders keep their order and get names that equal islands share: `input_0`, `weight_1`.
"""

import contextlib
import math
import operator
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.traceback import preserve_node_meta

from ladderize import compat
from ladderize.backends.tensorrt.engines.strides import Layouts, make_contiguous
from ladderize.compat import tensorrt as trt
from ladderize.compat.dispatcher import rename

aten = torch.ops.aten


def spell_island(island: GraphModule, weights: Collection[str]) -> tuple[GraphModule, Layouts]:
    """A graph with the values of `island`, contiguous inputs and outputs, and named `weights`.

    The layouts are those of the island's inputs and outputs in memory.
    """
    inputs = island.graph.find_nodes(op="placeholder")
    values = [node.meta["val"] for node in inputs]

    def interpret(*args: Any) -> Any:
        return torch.fx.Interpreter(island).run(*args)

    table = trt.tensorrt_decompositions()
    with preserve_node_meta(), compat.fake_mode_of(values) or contextlib.nullcontext():
        gm = make_fx(interpret, decomposition_table=table, tracing_mode="real")(*values)
    for index, (old, new) in enumerate(
        zip(inputs, gm.graph.find_nodes(op="placeholder"), strict=True)
    ):
        new.target = f"{'weight' if old.name in weights else 'input'}_{index}"
        rename(new, new.target)
        new.meta.setdefault("val", old.meta["val"])  # make_fx drops those of sizes
    gm.graph.eliminate_dead_code()
    _drop_aliases(gm)
    _spell_attention(gm)
    _count_in_whole_numbers(gm)
    _select_in_known_dtypes(gm)
    _write_known_sizes(gm)
    _read_sizes_from_shapes(gm)
    outputs: Any = island.graph.output_node().args[0]
    ours = [None if node.name in weights else node.meta["val"] for node in inputs]
    layouts = make_contiguous(gm, ours, [node.meta["val"] for node in outputs])
    for their_pass in trt.tensorrt_passes():
        gm = their_pass(gm, None)
    gm.graph.eliminate_dead_code()
    gm.recompile()
    return gm, layouts


def _drop_aliases(gm: GraphModule) -> None:
    for op in (aten.alias.default, aten.lift_fresh_copy.default, aten.detach.default):
        for node in gm.graph.find_nodes(op="call_function", target=op):
            node.replace_all_uses_with(node.args[0])
            gm.graph.erase_node(node)


def _spell_attention(gm: GraphModule) -> None:
    """Replace the attention ops of specific kernels by `scaled_dot_product_attention`.

    Torch-TensorRT does not know the CPU kernels that programs rewritten ahead of time use, and its
    converter of the memory-efficient kernel treats a mask as causal by default. Ops with dropout,
    which its converters ignore, are unchanged.
    """
    for node in list(gm.graph.nodes):
        names = _ATTENTION.get(node.target)
        given = dict(zip(names or (), node.args, strict=False)) | node.kwargs
        reads_more = any(_index(user) != 0 for user in node.users)
        if names is None or reads_more or given.get("dropout_p", 0.0) > 0:
            continue
        query, key = given["query"].meta["val"], given["key"].meta["val"]
        mask = given.get("attn_mask", given.get("attn_bias"))
        is_causal = given.get("is_causal", False)
        kwargs = {"enable_gqa": True} if query.shape[1] != key.shape[1] else {}
        with gm.graph.inserting_before(node):
            whole = gm.graph.call_function(
                aten.scaled_dot_product_attention.default,
                (given["query"], given["key"], given["value"], mask, 0.0, is_causal),
                {**kwargs, **_scale(given.get("scale"), query.shape[-1])},
            )
        for user in list(node.users):
            whole.meta.update(user.meta)
            user.replace_all_uses_with(whole)
            gm.graph.erase_node(user)
        gm.graph.erase_node(node)


def _scale(scale: float | None, width: Any) -> dict[str, float]:
    """`scale` unless it is the default; the converter rounds a given one to the query's dtype."""
    is_usual = scale is None or (
        isinstance(width, int) and math.isclose(scale, 1 / math.sqrt(width), rel_tol=1e-9)
    )
    return {} if scale is None or is_usual else {"scale": scale}


def _index(user: Node) -> object:
    return user.args[1] if user.target is operator.getitem else None


_ATTENTION: Mapping[Any, tuple[str, ...]] = {
    op: tuple(argument.name for argument in op._schema.arguments if not argument.kwarg_only)
    for op in (
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
    )
}


def _count_in_whole_numbers(gm: GraphModule) -> None:
    """`arange(0, 8.0, 2)` as a cast of `arange(0, 8, 2)`: the converter takes only integers."""
    for node in gm.graph.find_nodes(op="call_function", target=aten.arange.start_step):
        kind = node.meta["val"].dtype
        bounds = [bound for bound in node.args if isinstance(bound, float)]
        if not kind.is_floating_point or not all(bound.is_integer() for bound in bounds):
            continue
        with gm.graph.inserting_after(node):
            cast = _cast(gm, node, kind)
        node.replace_all_uses_with(cast, delete_user_cb=lambda user, own=cast: user is not own)
        node.args = tuple(int(b) if isinstance(b, float) else b for b in node.args)
        node.kwargs = node.kwargs | {"dtype": torch.int64}
        node.meta = node.meta | {"val": node.meta["val"].to(torch.int64)}


def _select_in_known_dtypes(gm: GraphModule) -> None:
    """`where(c, a, b)` of bfloat16 in float32: the converter would turn it into integers."""
    for node in gm.graph.find_nodes(op="call_function", target=aten.where.self):
        kind = node.meta["val"].dtype
        if kind not in _WIDER:
            continue
        condition, *values = node.args
        with gm.graph.inserting_before(node):
            wide = [_cast(gm, value, _WIDER[kind]) for value in values]
        with gm.graph.inserting_after(node):
            back = _cast(gm, node, kind)
        node.replace_all_uses_with(back, delete_user_cb=lambda user, own=back: user is not own)
        node.args = (condition, *wide)
        node.meta = node.meta | {"val": node.meta["val"].to(_WIDER[kind])}


_WIDER = {torch.bfloat16: torch.float32, torch.bool: torch.int32}


def _cast(gm: GraphModule, node: Node, kind: torch.dtype) -> Node:
    cast = gm.graph.call_function(aten._to_copy.default, (node,), {"dtype": kind})
    cast.meta = node.meta | {"val": node.meta["val"].to(kind)}
    return cast


def _write_known_sizes(gm: GraphModule) -> None:
    """`view(x, [s0, s1, -1, 16])` as `[s0, s1, 4, 16]`, or `[-1, …]` with one unknown size.

    TensorRT treats a size that is not written as unknown, and refuses unknown attention heads.
    """
    for node in gm.graph.find_nodes(op="call_function", target=aten._reshape_copy.default):
        shape = node.meta["val"].shape
        is_unknown = [isinstance(size, torch.SymInt) for size in shape]
        written = [
            size if not unknown else -1 if sum(is_unknown) == 1 else given
            for size, unknown, given in zip(shape, is_unknown, node.args[1], strict=True)
        ]
        node.args = (node.args[0], written)


def _read_sizes_from_shapes(gm: GraphModule) -> None:
    """Read a size from an input tensor that has it as a dim, which saves an engine input."""
    inputs = gm.graph.find_nodes(op="placeholder")
    tensors = [node for node in inputs if isinstance(node.meta["val"], torch.Tensor)]
    for node in inputs:
        if not isinstance(node.meta["val"], torch.SymInt) or not node.users:
            continue
        place = next((place for t in tensors if (place := _dim_of(t, node)) is not None), None)
        if place is None:
            continue
        with gm.graph.inserting_after(inputs[-1]):
            size = gm.graph.call_function(aten.sym_size.int, place)
            size.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(size)


def _dim_of(tensor: Node, size: Node) -> tuple[Node, int] | None:
    expression = size.meta["val"].node.expr
    for dim, length in enumerate(tensor.meta["val"].shape):
        if isinstance(length, torch.SymInt) and length.node.expr == expression:
            return tensor, dim
    return None
