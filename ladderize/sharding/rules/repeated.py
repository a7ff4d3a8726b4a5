"""Sharding rules of ops that repeat entries, such as key heads for each query head.

repeat_interleave(k [b, s, 4->2, 8], 2, 2)     [b, s, 8->4, 8]
repeat(k [b, 4->2, s, 8], [1, 2, 1, 1])        [b, 2 times 4->2, s, 8]
"""

from typing import Any

import torch

from ladderize.sharding.rules.layouts import source, wrap
from ladderize.sharding.values import Value
from ladderize.sharding.visit import Visit

aten = torch.ops.aten


def repeat_interleave(visit: Visit) -> Value:
    """repeat_interleave(x, repeats, dim, output_size=…): copies of an entry follow each other."""
    node, value, shard = source(visit)
    repeats, dim = visit.argument(1, "repeats"), visit.argument(2, "dim")
    if dim is None or not isinstance(repeats, int):
        visit.illegal(f"{visit.op_name} repeats entries by unknown numbers")
    if wrap(dim, len(visit.shape(node))) != shard.dim:
        return value
    visit.rewrite((node, repeats, dim), kwargs={})
    return value.at(shard.dim, [length * repeats for length in shard.chunks])


def repeat(visit: Visit) -> Value:
    """repeat(x, repeats), tile(x, repeats): repeat dims as a whole, and may add leading dims."""
    node, value, shard = source(visit)
    repeats = list(visit.argument(1, "repeats"))
    repeats = [1] * (len(visit.shape(node)) - len(repeats)) + repeats  # tile may give fewer
    at = shard.dim + len(repeats) - len(visit.shape(node))
    if not isinstance(repeats[at], int):
        visit.illegal(f"{visit.op_name} repeats entries by unknown numbers")
    return value.at(at, outer=shard.outer * repeats[at])


REPEAT_RULES: dict[Any, Any] = {
    aten.repeat_interleave: repeat_interleave,
    **dict.fromkeys((aten.repeat, aten.tile), repeat),
}
