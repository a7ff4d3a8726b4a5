"""The only sharding rule that sums along the sharded dim: the statistic of a written-out norm.

    h = silu(linear(x, w1)) ;  n = mul(h, rsqrt(mean(pow(h, 2), -1)))  ;  y = linear(n, w2)
    q = linear(x, w)        ;  n = mul(q, rsqrt(mean(pow(q, 2), -1)))  ;  heads = view(n, …)

The ranks' shares of the mean are all-reduced, one number per token. Otherwise the weights before
the norm would stay whole. In front of any other weight they do: that weight can be sharded by its
outputs, without an all-reduce.
"""

from typing import Any

import torch
from torch.fx import Node

from ladderize.sharding.placement import Partial, Shard
from ladderize.sharding.rules.products import PRODUCTS
from ladderize.sharding.values import Value
from ladderize.sharding.visit import FORM_READERS, Visit, is_tensor, packet

aten = torch.ops.aten

_STATISTICS = (aten.mean, aten.sum)
_STEPS = 16  # from a norm's statistic to the product after it, with a margin
_VIEWS = (aten.view, aten.reshape, aten._unsafe_view, aten.unflatten)
_PASSES = {aten.view, aten.reshape, aten.to, aten._to_copy, aten.flatten, aten.contiguous}


def sum_of_norm(visit: Visit, node: Node, shard: Shard) -> Value | None:
    """The partial value of a mean over the sharded dim of `node`; None for other reductions."""
    dims = visit.argument(1, "dim")
    if packet(visit.node) not in _STATISTICS or len(dims) != 1 or not visit.argument(2, "keepdim"):
        return None
    is_plain = shard.is_one_stretch and shard.outer == shard.inner == 1
    if not is_plain or not _leads_to_end(visit, visit.node, _STEPS):
        return None
    if packet(visit.node) is aten.mean:
        visit.share(node)
    return Value(Partial())


def _leads_to_end(visit: Visit, node: Node, steps: int) -> bool:
    """Whether `node` only leads to last products of the branch or to views as heads.

    Between are only pointwise ops and views.
    """
    readers = [user for user in node.users if packet(user) not in FORM_READERS]
    return bool(steps and readers) and all(_is_way(visit, node, r, steps) for r in readers)


def _is_way(visit: Visit, node: Node, reader: Node, steps: int) -> bool:
    form = PRODUCTS.get(packet(reader))
    if form is None:
        is_end = _splits_last_dim(visit, node, reader)
        return is_end or (_is_simple(reader) and _leads_to_end(visit, reader, steps - 1))
    is_input = reader.args[form.x] is node
    is_weight = visit.parameter(reader.args[form.weight]) is not None
    return is_input and is_weight and _is_last(visit, reader, _STEPS)


def _splits_last_dim(visit: Visit, node: Node, reader: Node) -> bool:
    """view(x, [batch, length, heads, -1])"""
    if packet(reader) not in _VIEWS:
        return False
    before, after = visit.shape(node), visit.shape(reader)
    return len(after) > len(before) and after[-1] != before[-1]


def _is_last(visit: Visit, node: Node, steps: int) -> bool:
    """Whether the branch adds `node` to the stream, up to pointwise ops and views."""
    if node in visit.outputs:
        return True
    readers = [user for user in node.users if packet(user) not in FORM_READERS]
    is_near = bool(steps and readers) and all(map(_is_simple, readers))
    return is_near and all(_is_last(visit, reader, steps - 1) for reader in readers)


def _is_simple(node: Node) -> bool:
    tags: Any = getattr(node.target, "tags", ())
    return is_tensor(node) and (torch.Tag.pointwise in tags or packet(node) in _PASSES)
