"""Sharding rules of products with a weight: linear, matmul, and batched products of experts.

linear(x, w)              x replicated -> w divided by outputs, result sharded on its last dim
linear(x sharded, w, b)                -> w divided by inputs, result partial, b added later
bmm(x, w[expert])         the same for every expert; also grouped_mm(x, w[expert], ends)
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from ladderize.graph.to_aten import wrapped
from ladderize.sharding.lookahead import cuts_by_readers
from ladderize.sharding.placement import Partial, Shard
from ladderize.sharding.rules.quantized import not_linear
from ladderize.sharding.values import REPLICATED, Illegal, NeedsCuts, Origin, Value, Values
from ladderize.sharding.visit import Visit, packet

aten = torch.ops.aten


@dataclass(frozen=True)
class Product:
    """The positions of a product's operands, and the output dim of its weight (-1 or -2)."""

    x: int
    weight: int
    bias: int | None
    outputs: int

    @property
    def inputs(self) -> int:
        return -3 - self.outputs


PRODUCTS: dict[Any, Product] = {
    aten.linear: Product(x=0, weight=1, bias=2, outputs=-2),
    aten.addmm: Product(x=1, weight=2, bias=0, outputs=-1),
    aten.baddbmm: Product(x=1, weight=2, bias=0, outputs=-1),
    aten.mm: Product(x=0, weight=1, bias=None, outputs=-1),
    aten.matmul: Product(x=0, weight=1, bias=None, outputs=-1),
    aten.bmm: Product(x=0, weight=1, bias=None, outputs=-1),
    aten._grouped_mm: Product(x=0, weight=1, bias=3, outputs=-1),
    # the op of transformers, which exists when its experts are imported
    "transformers.grouped_mm_fallback": Product(x=0, weight=1, bias=None, outputs=-1),
}
BATCHED = (aten.matmul, aten.bmm, aten.baddbmm)


def weighted(visit: Visit) -> Values:
    """Column-parallel for a replicated input, row-parallel for one sharded on its last dim."""
    if _is_weight_first(visit):
        return _weight_first(visit)
    form = PRODUCTS[packet(visit.node)]
    x, weight = visit.node.args[form.x], visit.node.args[form.weight]
    bias = None if form.bias is None else visit.argument(form.bias, "bias")
    assert isinstance(x, Node)
    assert isinstance(weight, Node)
    if visit.parameter(weight) is None or len(visit.shape(weight)) < 2 or _is_scaled(visit):
        return _without_weight(visit)
    shard, last = visit.value(x).shard, len(visit.shape(x)) - 1
    if shard is None:
        return _column_parallel(visit, form, x, weight, bias)
    if shard.dim == last and shard.outer == 1:
        return _row_parallel(visit, form, x, weight, bias)
    if len(visit.shape(weight)) > 2 and shard.dim == 0 and packet(visit.node) in BATCHED[1:]:
        for operand in (weight, bias):  # each part has its own weight
            if isinstance(operand, Node):
                visit.align(operand, -3, shard)
        return visit.value(x)
    if len(visit.shape(weight)) > 2:
        visit.illegal(f"{visit.op_name} multiplies each part of the sharded dim by another weight")
    if visit.sharded([weight]):
        visit.illegal(f"{visit.op_name} multiplies sharded rows by it", visit.origins([weight]))
    visit.enter(weight)
    if isinstance(bias, Node):
        visit.align(bias, shard.dim - last - 1, shard)
    return visit.value(x)


def _is_scaled(visit: Visit) -> bool:
    """addmm(…, alpha=2)"""
    return any(visit.node.kwargs.get(name, 1) != 1 for name in ("alpha", "beta"))


def _without_weight(visit: Visit) -> Values:
    if not visit.sharded(visit.operands()):
        return REPLICATED
    if packet(visit.node) in BATCHED:
        return batched(visit)
    return visit.illegal(f"the weight of {visit.op_name} is not a parameter")


def batched(visit: Visit) -> Values:
    """matmul, bmm and attention without weights: leading dims are independent, the last two mix.

    The exceptions are the rows of the first and the columns of the second factor of a product.
    """
    sharded = visit.sharded(visit.operands())
    if packet(visit.node) in BATCHED[:2] and len(sharded) == 1 and _is_free(visit, *sharded[0]):
        (node, shard), operands = sharded[0], visit.operands()
        for other in operands:
            if other is not node:
                visit.enter(other)
        from_right = shard.dim - len(visit.shape(node))
        return visit.value(node).at(len(visit.shape()) + from_right)
    return visit.meet(visit.operands(), mixed_dims=(-1, -2))


def _is_free(visit: Visit, node: Node, shard: Shard) -> bool:
    """Whether `node` is sharded on a dim that the matrix product does not sum over."""
    first, second = visit.node.args[:2]
    assert isinstance(first, Node)
    assert isinstance(second, Node)
    if first is second or min(len(visit.shape(first)), len(visit.shape(second))) < 2:
        return False
    return shard.dim == len(visit.shape(node)) - (2 if node is first else 1)


# ---- weights


def _is_weight_first(visit: Visit) -> bool:
    """matmul(w, x): a weight multiplies the columns of x"""
    first, second = visit.node.args[:2]
    is_product = packet(visit.node) in (aten.matmul, aten.mm)
    if not is_product or visit.parameter(second) is not None or visit.parameter(first) is None:
        return False
    assert isinstance(first, Node)
    assert isinstance(second, Node)
    return len(visit.shape(first)) == 2 and len(visit.shape(second)) >= 2


def _weight_first(visit: Visit) -> Values:
    weight, x = visit.node.args[:2]
    assert isinstance(weight, Node)
    assert isinstance(x, Node)
    shard, rows = visit.value(x).shard, len(visit.shape(x)) - 2
    if shard is not None and shard.dim != rows:
        visit.enter(weight)
        return visit.value(x)
    if shard is not None:
        if shard.whole or shard.outer != 1:
            visit.illegal(f"{visit.op_name} takes rows that are not evenly divided")
        refuse_without_second(visit, x, weight)
        visit.demand(weight, Shard(1, shard.chunks))
        return Value(Partial())
    parameter = visit.parameter(weight)
    if not visit.can_shard(weight) or parameter is None:
        return REPLICATED
    shard = visit.output_shard(weight, 0)
    origin = Origin(parameter, 0, shard.size)
    visit.demand(weight, shard, origin)
    visit.enter(x)
    if shard.whole:
        visit.enter_weight(weight, shard)
    return Value(Shard(rows, shard.chunks, shard.whole), (origin,))


def _column_parallel(visit: Visit, form: Product, x: Node, weight: Node, bias: Any) -> Values:
    if not visit.can_shard(weight):
        return REPLICATED
    shard = visit.output_shard(weight, len(visit.shape(weight)) + form.outputs)
    parameter = visit.parameter(weight)
    assert parameter is not None
    if shard.chunks[1:] == () and shard.size % visit.num_ranks:
        last = len(visit.shape()) - 1
        if cuts := cuts_by_readers(visit.node, last):
            raise NeedsCuts({parameter: frozenset(cuts)})
    origin = Origin(parameter, 0, shard.size)
    visit.demand(weight, shard, origin)
    visit.enter(x)
    if shard.whole:
        visit.enter_weight(weight, shard)
    if isinstance(bias, Node):
        visit.align(bias, -1, shard)
    return Value(Shard(len(visit.shape()) - 1, shard.chunks, shard.whole), (origin,))


def _row_parallel(visit: Visit, form: Product, x: Node, weight: Node, bias: Any) -> Values:
    shard = visit.value(x).shard
    assert shard is not None
    if shard.whole:
        visit.illegal(f"{visit.op_name} would sum parts that are whole on each rank several times")
    refuse_without_second(visit, x, weight)
    _refuse_not_linear(visit, weight)
    visit.demand(weight, Shard(len(visit.shape(weight)) + form.inputs, shard.chunks))
    if not isinstance(bias, Node):
        return Value(Partial())
    if bias not in visit.parameters or len(visit.shape(bias)) != 1:
        visit.share(bias)
        return Value(Partial())
    visit.rewrite((x, weight), aten.mm.default if packet(visit.node) is aten.addmm else None)
    return Value(Partial(), biases=(bias,))


def _refuse_not_linear(visit: Visit, weight: Node) -> None:
    parameter = visit.parameter(weight)
    assert parameter is not None
    whole = wrapped(parameter)
    if whole is not None and (reason := not_linear(whole)):
        visit.illegal(reason, [parameter])


def refuse_without_second(visit: Visit, x: Node, weight: Node) -> None:
    """Refuse a sharded input if the second weight must stay whole."""
    if not visit.can_shard(weight):
        parameter = visit.parameter(weight)
        assert parameter is not None
        reason = f"{visit.parameters[parameter]} stays whole"
        raise Illegal(reason, visit.value(x).origins, is_consequence=True)
