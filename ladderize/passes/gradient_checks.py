"""Refuse graphs that would train wrongly or not at all, with source lines and cures.

    y = all_reduce(h)           dist.all_reduce(h); funcol.all_reduce(h, …)
    backward, in eager mode     in place: dL/dh = dL/dy        functional: all_reduce(dL/dy)
    backward, compiled          all_reduce(dL/dy)              all_reduce(dL/dy)

The ranks of a tensor-parallel group have the same dL/dy, so its sum is too large by the number of
ranks. Megatron's autograd functions f and g have the right gradients.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ladderize import compat
from ladderize.errors import Blocker, LadderError
from ladderize.graph import ops
from ladderize.graph.collectives import dtensors, is_all_reduce
from ladderize.graph.higher_order import REGION

_RANDOM = frozenset(
    """scaled_dot_product_attention dropout dropout1d dropout2d dropout3d alpha_dropout
    feature_alpha_dropout rrelu bernoulli rand_like randn_like""".split()
)
_DIFFERENTIABLE = "torch/distributed/nn/functional.py"

USE_ENDS = (
    "call ladderize.parallel_ops.copy_to_ranks(x, group) before the column-parallel layer and "
    "ladderize.parallel_ops.reduce_from_ranks(y, group) after the row-parallel one (or your own "
    "autograd functions like these, Megatron's f and g)"
)


def refuse_wrong_gradients(gm: GraphModule) -> None:
    """Raise for all-reduces of `gm`, with its regions inlined, that a gradient flows through.

    Raises:
        LadderError: lists each all-reduce with its source line.
    """
    blockers = [
        Blocker.at(node, f"{ops.op_name(node)} of a value that needs a gradient")
        for node in gm.graph.nodes
        if is_all_reduce(node) and _needs_gradient(node)
    ]
    blockers += [
        Blocker.at(node, "an op of torch.distributed.nn.functional")
        for node in gm.graph.nodes
        if _DIFFERENTIABLE in node.meta.get("stack_trace", "").replace("\\", "/")
    ]
    if blockers:
        raise LadderError(
            "The compiled gradients of these collectives are not those of tensor parallelism (nor "
            "would they be with plain torch.compile):",
            blockers,
            f"{USE_ENDS}; without training, call the model under torch.no_grad()",
        )


def _needs_gradient(node: Node) -> bool:
    return any(t.requires_grad for source in node.all_input_nodes for t in ops.tensors(source))


def refuse_lost_gradients(gm: GraphModule) -> None:
    """Raise if tracing `gm` to ATen would lose the backward of an autograd function.

    Raises:
        LadderError: lists each `torch.autograd.Function` that a gradient flows through.
    """
    functions = [
        node
        for node in gm.graph.nodes
        if ops.op_name(node) == "autograd_function_apply" and _needs_gradient(node)
    ]
    if functions and torch.is_grad_enabled():
        raise LadderError(
            "The gradients of these autograd functions would be lost in sharding:",
            [Blocker.at(node, "torch.autograd.Function") for node in functions],
            "call the model under torch.no_grad(), or train it with ladderize.parallelize",
        )


def refuse_unsaved_states(gm: GraphModule) -> None:
    """Raise for random ops in checkpointed layers with DTensors, which torch 2.13 breaks on a CPU.

    It saves the states of the random generator, needed to recompute dropout and attention, after
    the meshes of the DTensors, and then takes the meshes for tensors. `gm` has its regions inlined.

    Raises:
        LadderError: lists each random op of a checkpointed layer.
    """
    has_meshes = any(
        tensor.requires_grad
        for node in gm.graph.find_nodes(op="placeholder")
        for tensor in dtensors(node)
    )
    if not (has_meshes and compat.saves_random_states_behind_meshes()):
        return
    blockers = [Blocker.at(node, ops.op_name(node)) for node in _random_on_cpu(gm)]
    if blockers:
        raise LadderError(
            f"torch {torch.__version__} cannot train checkpointed layers that hold DTensors and "
            "these ops, which (may) draw random numbers, on a CPU (nor can plain torch.compile):",
            blockers,
            'use another torch (2.11 and 2.15 can) or a GPU; attn_implementation="eager" and no '
            "dropout; lowering='eager'; or no gradient checkpointing",
        )


def _random_on_cpu(gm: GraphModule) -> Iterator[Node]:
    for node in gm.graph.nodes:
        if node.meta.get(REGION) is None or not _may_draw(node):
            continue
        if any(tensor.device.type == "cpu" for tensor in ops.tensors(node)):
            yield node


def _may_draw(node: Node) -> bool:
    """Whether AOTAutograd treats `node` as random: always for attention, not for dropout of 0."""
    name = ops.op_name(node)
    if "dropout" not in name:
        return name in _RANDOM
    given: dict[str, Any] = dict(zip(("input", "p", "training"), node.args, strict=False))
    given |= node.kwargs
    return name in _RANDOM and given.get("p") != 0 and given.get("training") is not False
