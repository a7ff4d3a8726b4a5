"""The only sharding rule that sums along the sharded dim: a norm before the last weight.

    h = silu(linear(x, w1)) ;  n = mul(h, rsqrt(mean(pow(h, 2), -1)))  ;  y = linear(n, w2)

The ranks' shares of the mean are all-reduced, one number per token. Otherwise the whole branch
would stay whole. Elsewhere, a norm over all channels keeps the weights before it whole: for q and k
of OLMo 2 this costs less than two blocking all-reduces.
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
_PASSES = {aten.view, aten.reshape, aten.to, aten._to_copy, aten.flatten, aten.contiguous}


def sum_of_norm(visit: Visit, node: Node, shard: Shard) -> Value | None:
    """The partial value of a mean over the sharded dim of `node`; None for other reductions."""
    dims = visit.argument(1, "dim")
    if packet(visit.node) not in _STATISTICS or len(dims) != 1 or not visit.argument(2, "keepdim"):
        return None
    is_plain = shard.is_one_stretch and shard.outer == shard.inner == 1
    if not is_plain or not _leads_to_weight(visit, visit.node, _STEPS):
        return None
    if packet(visit.node) is aten.mean:
        visit.share(node)
    return Value(Partial())


def _leads_to_weight(visit: Visit, node: Node, steps: int) -> bool:
    """Whether `node` only leads to last products of the branch, by pointwise ops and views."""
    readers = [user for user in node.users if packet(user) not in FORM_READERS]
    return bool(steps and readers) and all(_is_way(visit, node, r, steps) for r in readers)


def _is_way(visit: Visit, node: Node, reader: Node, steps: int) -> bool:
    form = PRODUCTS.get(packet(reader))
    if form is None:
        return _is_simple(reader) and _leads_to_weight(visit, reader, steps - 1)
    is_input = reader.args[form.x] is node
    is_weight = visit.parameter(reader.args[form.weight]) is not None
    return is_input and is_weight and _is_last(visit, reader, _STEPS)


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
