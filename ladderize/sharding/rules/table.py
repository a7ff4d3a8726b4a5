"""The table of sharding rules: how each ATen op propagates a sharding, one row per op.

    linear(x, w)           x replicated    -> w divided by outputs, result sharded on its last dim
    linear(x sharded, w)                   -> w divided by inputs, result partial
    any(replicated …)                      -> replicated, without a rule

A rule gets a `Visit` and returns the placement of the result. Pointwise ops need no row. An op with
neither a row nor the pointwise tag keeps the parameters behind its sharded inputs whole. Products,
convolutions, layout ops, parts and partial inputs have their own files.
"""

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Node

from ladderize.graph.writes import written_operands
from ladderize.sharding.placement import (
    Local,
    OwnRows,
    Partial,
    Placement,
    Replicate,
    Shard,
    SharedHeads,
    Whole,
)
from ladderize.sharding.rules import layouts as layout
from ladderize.sharding.rules.caches import CACHE_RULES, LOCAL_RULES, by_heads
from ladderize.sharding.rules.convolutions import CONV_RULES, GROUPS
from ladderize.sharding.rules.experts import by_expert, sums_experts
from ladderize.sharding.rules.filled import MADE, WRITES, make, write
from ladderize.sharding.rules.lookups import LOOKUP_RULES, arange
from ladderize.sharding.rules.norms import sum_of_norm
from ladderize.sharding.rules.own_rows import carry_own_rows
from ladderize.sharding.rules.partials import join_partials
from ladderize.sharding.rules.parts import PART_RULES
from ladderize.sharding.rules.products import PRODUCTS, batched, weighted
from ladderize.sharding.rules.repeated import REPEAT_RULES
from ladderize.sharding.rules.shared_heads import by_shared_heads
from ladderize.sharding.values import REPLICATED, RowSelection, Value, Values
from ladderize.sharding.visit import Visit, packet

aten = torch.ops.aten
Rule = Callable[[Visit], Values]
WEIGHTED = {*PRODUCTS, *GROUPS}  # ops that start a sharding


# ---- computing ops


def attention(visit: Visit) -> Values:
    query, key, value = (visit.argument(i, n) for i, n in enumerate(("query", "key", "value")))
    heads, kv_heads = visit.shape(query)[-3], visit.shape(key)[-3]
    _refuse_mixed(visit, (query, key, value))
    shards = [visit.value(node).shard for node in (query, key, value)]
    is_shared = kv_heads == 1 or visit.argument(7, "enable_gqa", False)
    if not any(shards) or heads == kv_heads or not is_shared:
        return batched(visit)
    if shards[0] != Shard(len(visit.shape(query)) - 3, (heads,)):
        visit.illegal(f"{visit.op_name} shares {kv_heads} key heads among undivided queries")
    if shards[1] != shards[2]:
        visit.illegal(f"{visit.op_name} takes keys and values placed differently")
    rest = [node for node in visit.operands() if node not in (key, value)]
    result = visit.meet(rest, mixed_dims=(-1, -2))
    if shards[1] is None and kv_heads == 1:
        visit.enter(key)
        visit.enter(value)
    elif shards[1] is None:
        selection = RowSelection(
            len(visit.shape(key)) - 3, shared_heads(heads, kv_heads, visit.num_ranks)
        )
        visit.enter(key, selection)
        visit.enter(value, selection)
    return result


def _refuse_mixed(visit: Visit, operands: Sequence[Node]) -> None:
    """Attention mixes positions and the entries of a head; refuse operands sharded on these."""
    mixed = [n for n, s in visit.sharded(operands) if s.dim >= len(visit.shape(n)) - 2]
    if mixed:
        visit.illegal(f"{visit.op_name} mixes entries of the sharded dim", visit.origins(mixed))


def shared_heads(heads: int, kv_heads: int, num_ranks: int) -> tuple[tuple[int, ...], ...]:
    """The key/value heads that each rank's query heads read; one per query head if not aligned.

    8 query heads on 2 key heads over 4 ranks -> (0), (0), (1), (1); 6 on 3 over 2 ranks ->
    (0, 0, 1), (1, 2, 2).
    """
    local, share = heads // num_ranks, heads // kv_heads
    rows = [[h // share for h in range(r * local, (r + 1) * local)] for r in range(num_ranks)]
    unique = [sorted(set(row)) for row in rows]
    if (
        all(
            [u for u in us for _ in range(local // len(us))] == row
            for us, row in zip(unique, rows, strict=True)
        )
        and len({len(us) for us in unique}) == 1
    ):
        rows = unique
    return tuple(map(tuple, rows))


def pointwise(visit: Visit) -> Values:
    return visit.meet(visit.operands())


def along(index: int, name: str = "dim") -> Rule:
    """A rule for ops that mix entries along the dims in argument `index` and keep the shape."""

    def rule(visit: Visit) -> Values:
        dims = visit.argument(index, name)
        return visit.meet(visit.operands(), _from_right(dims, len(visit.shape())))

    return rule


def reduction(visit: Visit, at: int = 1) -> Values:
    """mean(x, dims, keepdim): the reduced dims, in argument `at`, must be whole."""
    node, value, shard = layout.source(visit)
    ndim = len(visit.shape(node))
    dims = {d + ndim for d in _from_right(visit.argument(at, "dim"), ndim)} or set(range(ndim))
    if shard.dim in dims and sums_experts(visit, value):
        return Value(Partial())
    sums = visit.sums_norms and shard.dim in dims
    if sums and (partial := sum_of_norm(visit, node, shard)) is not None:
        return partial
    if shard.dim in dims:
        visit.illegal(f"{visit.op_name} reduces the sharded dim")
    made = visit.node.meta["val"]
    kept = (made if isinstance(made, torch.Tensor) else made[0]).dim() == ndim
    return value if kept else value.at(shard.dim - sum(d < shard.dim for d in dims))


def roll(visit: Visit) -> Values:
    """roll(x, shifts, dims): without dims, over all entries."""
    dims = visit.argument(2, "dims", ())
    mixed = _from_right(dims, len(visit.shape())) or range(-len(visit.shape()), 0)
    return visit.meet(visit.operands(), mixed)


def normalization(visit: Visit) -> Values:
    """layer_norm(x, normalized_shape, weight, bias): the trailing dims mix."""
    count = len(visit.argument(1, "normalized_shape"))
    return visit.meet(visit.operands(), range(-count, 0))


def _from_right(dims: Any, ndim: int) -> list[int]:
    listed = dims if isinstance(dims, (list, tuple)) else [] if dims is None else [dims]
    return [d if d < 0 else d - ndim for d in listed]


def einsum(visit: Visit) -> Values:
    """einsum("bhqd,bhkd->bhqk", q, k): the result must have the sharded letter."""
    equation, tensors = visit.argument(0).replace(" ", ""), visit.argument(1)
    terms, _, result = equation.partition("->")
    letters = dict(zip(tensors, terms.split(","), strict=True))
    if "." in equation or not result or len(letters) != len(tensors):
        visit.illegal(f"no sharding rule for {visit.op_name} of {equation}")
    sharded = visit.sharded(tensors)
    held = {letters[node][shard.dim] for node, shard in sharded}
    if len(held) > 1 or not held <= set(result):
        visit.illegal(f"{visit.op_name} mixes entries of the sharded dim")
    (letter,) = held
    shard = visit.common_shard(sharded)
    inside = {node for node, _ in sharded}
    for node, dims in letters.items():
        if node not in inside and letter in dims:
            visit.align(node, dims.index(letter) - len(dims), shard)
        elif node not in inside:
            visit.enter(node)
    return Value(dataclasses.replace(shard, dim=result.index(letter)), visit.origins(inside))


def triangle(visit: Visit) -> Values:
    """tril(x, diagonal), triu: the last two dims must be whole."""
    return visit.meet(visit.operands(), (-1, -2))


def choice(visit: Visit) -> Values:
    """topk(x, k, dim), sort: return values and positions along `dim`."""
    at = {aten.topk: 2, aten.sort: 1}[packet(visit.node)]
    node, value, shard = layout.source(visit)
    if layout.wrap(visit.argument(at, "dim", -1), len(visit.shape(node))) == shard.dim:
        visit.illegal(f"{visit.op_name} chooses among entries of the sharded dim")
    return (value,) * 2


def size(visit: Visit) -> Values:
    """sym_size(x, dim): the dim must be whole"""
    node, _, shard = layout.source(visit)
    if layout.wrap(visit.argument(1), len(visit.shape(node))) == shard.dim:
        visit.illegal(f"{visit.op_name} reads the size of the sharded dim")
    return REPLICATED


def extremes(visit: Visit) -> Values:
    """max(x, dim, keepdim), var_mean: two values; max(x), max(x, y): one."""
    if isinstance(visit.argument(1), Node):
        return pointwise(visit)
    found, made = reduction(visit), visit.node.meta["val"]
    assert isinstance(found, Value)
    return found if isinstance(made, torch.Tensor) else (found,) * len(made)


RULES: dict[Any, Rule] = {
    **dict.fromkeys(PRODUCTS, weighted),
    **CONV_RULES,
    **PART_RULES,
    **LOOKUP_RULES,
    aten.scaled_dot_product_attention: attention,
    **dict.fromkeys(
        (
            aten.softmax, aten._softmax, aten.log_softmax, aten._safe_softmax, aten.cumsum,
            aten.cumprod, aten.logcumsumexp, aten.flip,
        ),
        along(1),
    ),
    aten.layer_norm: normalization,
    aten.rms_norm: normalization,
    **dict.fromkeys(
        (
            aten.mean, aten.sum, aten.nansum, aten.prod, aten.var, aten.std, aten.amax, aten.amin,
            aten.logsumexp, aten.all, aten.any, aten.argmax, aten.argmin,
        ),
        reduction,
    ),
    **dict.fromkeys((aten.max, aten.min, aten.median, aten.aminmax, aten.var_mean), extremes),
    aten.roll: roll,
    aten.linalg_vector_norm: lambda visit: reduction(visit, at=2),
    **dict.fromkeys((aten.topk, aten.sort), choice),
    aten.einsum: einsum,
    aten.linalg_solve_triangular: lambda visit: visit.meet(visit.operands(), (-1, -2)),
    **dict.fromkeys((aten.tril, aten.triu), triangle),
    aten.sym_size: size,
    **dict.fromkeys((aten.view_as_complex, aten.view_as_real), layout.pairs),
    **dict.fromkeys(
        (aten.view, aten.reshape, aten._unsafe_view, aten.flatten, aten.unflatten), layout.view
    ),
    **dict.fromkeys((aten.view_as, aten.reshape_as), layout.view_as),
    **dict.fromkeys((aten.expand, aten.broadcast_to), layout.expand),
    aten.permute: layout.permute,
    **dict.fromkeys((aten.movedim, aten.moveaxis), layout.movedim),
    **dict.fromkeys((aten.transpose, aten.swapaxes, aten.swapdims), layout.transpose),
    **dict.fromkeys(
        (aten.t, aten.numpy_T, aten.mT, aten.mH, aten.matrix_H, aten.adjoint), layout.reorder
    ),
    aten.unsqueeze: layout.unsqueeze,
    aten.squeeze: layout.squeeze,
    **CACHE_RULES,
    **REPEAT_RULES,
    # pointwise ops without the tag
    **dict.fromkeys(
        (
            aten.to, aten._to_copy, aten.type_as, aten.alias, aten.detach, aten.contiguous,
            aten.dropout, aten.native_dropout, aten.where, aten.masked_fill, aten.selu,
            aten.multiply, aten.expand_as, aten.divide, aten.subtract, aten.rsub, aten.negative,
            aten.absolute, aten.log_sigmoid, aten.hardswish,
            aten.__and__, aten.__or__, aten.__xor__, aten.__lshift__, aten.__rshift__,
        ),
        pointwise,
    ),
}  # fmt: skip


# ---- lookup


def apply_rule(visit: Visit) -> Values:
    """The placement of `visit.node`, from the tables."""
    if (divided := by_expert(visit)) is not None:
        return divided
    if (of_cache := LOCAL_RULES.get(visit.node.target)) is not None:
        return of_cache(visit)
    op = packet(visit.node)
    inputs = [visit.values.get(node, REPLICATED) for node in visit.node.all_input_nodes]
    parts = [part for value in inputs for part in (value if isinstance(value, tuple) else [value])]
    kinds = {type(part.placement) for part in parts}
    if op is operator.getitem:
        return REPLICATED if kinds <= {Replicate} else RULES[op](visit)
    if Local in kinds:
        return by_heads(visit)
    if SharedHeads in kinds:
        return by_shared_heads(visit, is_pointwise(visit.node))
    if op in WRITES:
        return write(visit)
    if op in MADE:
        return make(visit)
    if op is aten.arange:
        return arange(visit)
    if kinds <= {Replicate} and op not in WEIGHTED:
        return REPLICATED
    if Whole in kinds and kinds <= {Replicate, Whole}:
        return _on_each_rank(visit, parts)
    return _of_parts(visit, inputs, kinds)


def _of_parts(visit: Visit, inputs: Sequence[Values], kinds: set[type[Placement]]) -> Values:
    """The placement of an op that starts a sharding, or reads sharded, own or partial values."""
    if any(isinstance(value, tuple) for value in inputs):
        visit.illegal(f"{visit.op_name} takes several sharded tensors at once")
    if OwnRows in kinds:
        owned = [node for node in visit.operands() if visit.value(node).own is not None]
        return carry_own_rows(visit, owned, is_pointwise(visit.node))
    if Partial in kinds:
        return join_partials(visit, [n for n in visit.operands() if visit.value(n).is_partial])
    if written_operands(visit.node) and packet(visit.node) not in CACHE_RULES:
        visit.illegal(f"{visit.op_name} writes in place")
    _refuse_merged(visit)
    if (rule := _rule_of(visit.node)) is not None:
        return rule(visit)
    return visit.illegal(f"no sharding rule for {visit.op_name}")


def _refuse_merged(visit: Visit) -> None:
    """Refuse a merged `[experts*tokens]` of symbolic length, except in pointwise ops and views."""
    merged = [shard for _, shard in visit.sharded(visit.operands()) if shard.inner != 1]
    if merged and not (is_pointwise(visit.node) or RULES.get(packet(visit.node)) is layout.view):
        visit.illegal(f"{visit.op_name} separates entries of a merged dim")


def has_rule(node: Node) -> bool:
    """Whether the op of `node` is in a table or pointwise."""
    return _rule_of(node) is not None or packet(node) in {*WRITES, *MADE, aten.arange}


def is_pointwise(node: Node) -> bool:
    """Whether the op of `node` is in the table as pointwise, or tagged so and in no row."""
    return _rule_of(node) is pointwise


def _rule_of(node: Node) -> Rule | None:
    is_tagged = torch.Tag.pointwise in getattr(node.target, "tags", ())
    return RULES.get(packet(node), pointwise if is_tagged else None)


def _on_each_rank(visit: Visit, parts: list[Value]) -> Values:
    """The placement of an op on values that are whole on each rank; replicated operands enter."""
    for node in visit.operands():
        if visit.value(node).is_replicated:
            visit.enter(node)
    value = Value(Whole(), tuple(dict.fromkeys(o for part in parts for o in part.origins)))
    made = visit.node.meta["val"]
    return (value,) * len(made) if isinstance(made, (tuple, list)) else value
