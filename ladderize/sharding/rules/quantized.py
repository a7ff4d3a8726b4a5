"""Weights that are wrapper subclasses: values, scales and zero points are sharded together.

    w [128, 64] of int8 [128, 64], scales [128, 2], groups of 32 along the inputs

    column-parallel, 2 ranks   int8 [64, 64]    scales [64, 2]      rows of all
    row-parallel, 2 ranks      int8 [128, 32]   scales [128, 1]     whole groups of all

For the rules, such a weight is a plain parameter. Its library implements `aten.slice` for parts.
This module checks that the parts make up the whole, and that a product with them is linear in the
other factor, so that the ranks' results can be summed.
"""

import torch
from torch import Tensor

from ladderize import compat
from ladderize.sharding.placement import Shard, take_local

aten = torch.ops.aten

_LINEAR = {
    aten.mm, aten.addmm, aten.bmm, aten.matmul, aten.linear, aten.mul, aten.div,
    aten.view, aten.reshape, aten._unsafe_view, aten.flatten, aten.unsqueeze, aten.squeeze,
    aten.t, aten.transpose, aten.permute, aten.expand, aten.clone, aten.contiguous, aten.detach,
    aten.alias, aten.to, aten._to_copy, aten.sum,
    aten._weight_int8pack_mm, aten._weight_int4pack_mm, aten._weight_int4pack_mm_for_cpu,
}  # fmt: skip
"""Ops allowed on the operand of a row-parallel product, and on values computed from it."""
_CANNOT = (AttributeError, RuntimeError, ValueError, AssertionError, TypeError)
"""Errors that libraries raise for parts that they do not support."""


def refused_parts(weight: Tensor, shard: Shard, num_ranks: int) -> str | None:
    """The reason why `weight` cannot be split into the ranks' parts; None if it can.

    Args:
        weight: fake wrapper subclass.
        shard: wanted placement.
        num_ranks: number of ranks.
    """
    name, whole = type(weight).__name__, compat.inner_tensors(weight)
    op = "aten.slice" if shard.is_one_stretch else "aten.cat"
    for rank in (0, num_ranks - 1):
        try:
            with compat.fake_mode_of([*whole.values()]), torch.no_grad():
                part = compat.inner_tensors(take_local(weight, shard, rank, num_ranks))
        except _CANNOT as error:
            return f"{op} along dim {shard.dim} of {name}: {str(error).partition(chr(10))[0]}"
        share = (shard.local_size(num_ranks), shard.size)
        if cut := [inner for inner in whole if not _is_share(part.get(inner), whole[inner], share)]:
            shapes = ", ".join(f"{inner} {list(whole[inner].shape)}" for inner in cut)
            return f"{op} along dim {shard.dim} of {name} does not divide {shapes} evenly"
    return None


def _is_share(part: Tensor | None, whole: Tensor, share: tuple[int, int]) -> bool:
    """Whether `part` has `share` of the entries, or all entries, such as a scale for the weight."""
    if part is None:
        return False
    local, size = share
    return part.shape == whole.shape or part.numel() * size == whole.numel() * local


def not_linear(weight: Tensor) -> str | None:
    """The op that makes `linear(x, weight)` nonlinear in x, such as quantizing x; else None."""
    with compat.fake_mode_of([*compat.inner_tensors(weight).values()]), torch.no_grad():
        x = torch.empty(2, weight.shape[-1], dtype=weight.dtype, device=weight.device)
        try:
            ops = compat.ops_reading(x, lambda: torch.nn.functional.linear(x, weight))
        except _CANNOT as error:
            return f"aten.linear of {type(weight).__name__}: {str(error).partition(chr(10))[0]}"
    found = next((op for op in ops if op not in _LINEAR), None)
    return None if found is None else f"{found} of what {type(weight).__name__} multiplies"
