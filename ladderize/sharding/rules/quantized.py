"""Weights that are made of other tensors: packed values, scales and zero points, divided together.

    w [128, 64] of int8 [128, 64], scales [128, 2], groups of 32 along the inputs

    column-parallel, 2 ranks   int8 [64, 64]    scales [64, 2]      rows of all
    row-parallel, 2 ranks      int8 [128, 32]   scales [128, 1]     whole groups of all

To the rules such a weight is a plain parameter. Its library says what a part of it is, by
`aten.slice`; here it is checked that the parts make up the whole, and that a product with them is
linear in what it multiplies, so that the ranks' results may be summed.
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
"""What may be done with the operand of a row-parallel product, and with what was made of it."""
_CANNOT = (AttributeError, RuntimeError, ValueError, AssertionError, TypeError)
"""What libraries raise for a part that they cannot take."""


def refused_parts(weight: Tensor, shard: Shard, num_ranks: int) -> str | None:
    """Why the ranks' parts of `weight` cannot be taken; None if they make up the whole.

    Args:
        weight: fake, made of other tensors.
        shard: how it is to lie.
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
    """Whether `part` has `share` of the entries, or all, as a scale for the whole weight has."""
    if part is None:
        return False
    local, size = share
    return part.shape == whole.shape or part.numel() * size == whole.numel() * local


def not_linear(weight: Tensor) -> str | None:
    """The op by which `linear(x, weight)` is not linear in x, as where x is quantized too."""
    with compat.fake_mode_of([*compat.inner_tensors(weight).values()]), torch.no_grad():
        x = torch.empty(2, weight.shape[-1], dtype=weight.dtype, device=weight.device)
        try:
            ops = compat.ops_reading(x, lambda: torch.nn.functional.linear(x, weight))
        except _CANNOT as error:
            return f"aten.linear of {type(weight).__name__}: {str(error).partition(chr(10))[0]}"
    found = next((op for op in ops if op not in _LINEAR), None)
    return None if found is None else f"{found} of what {type(weight).__name__} multiplies"
