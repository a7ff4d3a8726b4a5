"""Sharding rules by channel: convolutions, norms and pooling.

conv2d(x, w)               x replicated -> w divided by outputs, result sharded on channels
batch_norm(x sharded, …)                -> gain, bias and running statistics divided alike
conv2d(x sharded, w, b)                 -> w divided by inputs, result partial
conv2d(x sharded, w, groups=channels)   -> each rank filters its own channels
"""

import dataclasses
from typing import Any

import torch
from torch.fx import Node

from ladderize.sharding.placement import Partial, Shard
from ladderize.sharding.rules.products import refuse_without_second
from ladderize.sharding.values import REPLICATED, Origin, Value, Values
from ladderize.sharding.visit import Visit, packet

aten = torch.ops.aten

# op -> position of its number of groups
GROUPS = {aten.conv1d: 6, aten.conv2d: 6, aten.conv3d: 6}


def convolution(visit: Visit) -> Values:
    """conv(x, weight[out, in / groups, …], bias, stride, padding, dilation, groups)"""
    x, weight, bias = (visit.argument(i, n) for i, n in enumerate(("input", "weight", "bias")))
    groups = visit.argument(GROUPS[packet(visit.node)], "groups", 1)
    if visit.parameter(weight) is None:
        if visit.sharded([x]):
            visit.illegal(f"the weight of {visit.op_name} is not a parameter")
        return REPLICATED
    shard = visit.value(x).shard
    if shard is None:
        return _by_outputs(visit, x, weight, bias, groups)
    if shard.dim != channel_dim(visit, x, weight):
        visit.illegal(f"{visit.op_name} slides along the sharded dim")
    if shard.outer != 1 or (shard.whole and groups == 1):
        visit.illegal(f"{visit.op_name} takes channels that are not evenly divided")
    if groups == 1:
        return _by_inputs(visit, x, weight, bias)
    return _by_groups(visit, weight, bias, groups)


def channel_dim(visit: Visit, x: Node, weight: Node) -> int:
    return len(visit.shape(x)) - len(visit.shape(weight)) + 1


def _by_outputs(visit: Visit, x: Node, weight: Node, bias: Any, groups: int) -> Values:
    """Shard by output channels. With groups, each rank selects the inputs of its outputs.

    Depthwise convolutions are kept whole, because the next op mixes their channels.
    """
    parameter, inputs = visit.parameter(weight), visit.shape(weight)[1]
    if not visit.can_shard(weight) or parameter is None or (groups > 1 and inputs == 1):
        return REPLICATED
    shard = visit.output_shard(weight, 0)
    origin = Origin(parameter, 0, shard.size)
    visit.demand(weight, shard, origin)
    visit.enter(x)
    if groups > 1:
        _select_groups(visit, x, weight, shard, groups)
    if shard.whole:
        visit.enter_weight(weight, shard)
    if isinstance(bias, Node):
        visit.align(bias, -1, shard)
    return Value(dataclasses.replace(shard, dim=channel_dim(visit, x, weight)), (origin,))


def _select_groups(visit: Visit, x: Node, weight: Node, shard: Shard, groups: int) -> None:
    outputs, inputs = shard.size // groups, visit.shape(weight)[1]
    if shard.whole or any(length % (outputs * visit.num_ranks) for length in shard.chunks):
        parameter = visit.parameter(weight)
        assert parameter is not None
        visit.illegal(visit.describe_size(groups, "groups of channels"), [parameter])
    dim = channel_dim(visit, x, weight)
    visit.select(x, dim, Shard(dim, tuple(n // outputs * inputs for n in shard.chunks)))
    visit.set_argument(GROUPS[packet(visit.node)], groups // visit.num_ranks)


def _by_inputs(visit: Visit, x: Node, weight: Node, bias: Any) -> Values:
    shard = visit.value(x).shard
    assert shard is not None
    refuse_without_second(visit, x, weight)
    visit.demand(weight, Shard(1, shard.chunks))
    if isinstance(bias, Node):
        visit.share(bias)
    return Value(Partial())


def _by_groups(visit: Visit, weight: Node, bias: Any, groups: int) -> Values:
    """Keep groups of channels together: every rank's part of a chunk has whole groups."""
    value = visit.value(visit.argument(0, "input"))
    shard = value.shard
    assert shard is not None
    inputs, outputs = shard.size // groups, visit.shape(weight)[0] // groups
    for i, length in enumerate(shard.chunks):
        if length % (inputs * (1 if i in shard.whole else visit.num_ranks)):
            visit.illegal(visit.describe_size(groups, "groups of channels"))
    refuse_without_second(visit, visit.argument(0, "input"), weight)
    made = Shard(0, tuple(length // inputs * outputs for length in shard.chunks), shard.whole)
    visit.demand(weight, made)
    if made.whole:
        visit.enter_weight(weight, made)
    if isinstance(bias, Node):
        visit.align(bias, -1, made)
    local = made.local_size(visit.num_ranks) // outputs
    visit.set_argument(GROUPS[packet(visit.node)], local)
    return value.at(shard.dim, made.chunks)


def batch_norm(visit: Visit) -> Values:
    """batch_norm(x, weight, bias, running_mean, running_var, training, …): by channel."""
    x = visit.argument(0, "input")
    value, others = visit.value(x), [node for node in visit.operands() if node is not x]
    if value.shard is None or value.shard.dim != 1 or visit.argument(5, "training"):
        visit.illegal(f"{visit.op_name} mixes entries of the sharded dim")
    for node in others:
        visit.align(node, -1, value.shard)
    return value


def group_norm(visit: Visit) -> Values:
    """group_norm(x, num_groups, weight, bias): every rank's part of a chunk has whole groups."""
    x, groups = visit.argument(0, "input"), visit.argument(1, "num_groups")
    value = visit.value(x)
    shard = value.shard
    if shard is None or shard.dim != 1 or shard.outer != 1 or shard.whole:
        visit.illegal(f"{visit.op_name} mixes entries of the sharded dim")
    if any(length % (shard.size // groups * visit.num_ranks) for length in shard.chunks):
        visit.illegal(visit.describe_size(groups, "groups of channels"))
    for i, name in ((2, "weight"), (3, "bias")):
        if isinstance(node := visit.argument(i, name), Node):
            visit.align(node, -1, shard)
    visit.set_argument(1, groups // visit.num_ranks)
    return value


def spatial(dims: int) -> Any:
    """Pooling and resizing over the last `dims` dims."""

    def rule(visit: Visit) -> Values:
        return visit.meet(visit.operands(), range(-dims, 0))

    return rule


CONV_RULES: dict[Any, Any] = {
    **dict.fromkeys(GROUPS, convolution),
    aten.batch_norm: batch_norm,
    aten.group_norm: group_norm,
    **dict.fromkeys((aten.avg_pool1d, aten.max_pool1d, aten.adaptive_avg_pool1d), spatial(1)),
    **dict.fromkeys(
        (aten.avg_pool2d, aten.max_pool2d, aten.adaptive_avg_pool2d, aten.upsample_nearest2d),
        spatial(2),
    ),
}
