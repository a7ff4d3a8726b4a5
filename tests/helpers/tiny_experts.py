"""Tiny versions of the mixtures of experts in `bench/moe_nets.py`, for `ladderize bench`."""

from moe_nets import MoeNet, MoeSizes, WrittenMoe, make

SIZES = MoeSizes(batch=2, length=6, width=16, inner=8, layers=3, heads=2, num_experts=4, slots=1.0)
TRAINED = MoeSizes(batch=2, length=6, width=16, inner=8, layers=2, heads=2, is_trained=True)


def standard():
    return make(MoeNet, SIZES)


def written():
    return make(WrittenMoe, SIZES)


def standard_trained():
    return make(MoeNet, TRAINED)


def written_trained():
    return make(WrittenMoe, TRAINED)
