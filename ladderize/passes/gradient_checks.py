"""What would train wrongly, or not at all: found before autograd, each with its line and its cure.

    y = all_reduce(h)           dist.all_reduce(h); funcol.all_reduce(h, …)
    backward, in eager mode     in place: dL/dh = dL/dy        functional: all_reduce(dL/dy)
    backward, compiled          all_reduce(dL/dy)              all_reduce(dL/dy)

The ranks of a tensor-parallel group hold the same dL/dy, so that its sum is too large by their
number. Megatron's pair f and g has the right gradients: they are autograd functions around it.
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
    "let ladderize.parallel_ops.copy_to_ranks(x, group) stand ahead of the column-parallel layer "
    "and ladderize.parallel_ops.reduce_from_ranks(y, group) after the row-parallel one (or "
    "autograd functions of your own like these, Megatron's f and g)"
)


def refuse_wrong_gradients(gm: GraphModule) -> None:
    """Raise for all-reduces of `gm`, with its regions inlined, that a gradient flows through.

    Raises:
        LadderError: naming the line of each.
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
    """Raise where tracing `gm` to ATen would lose the backward of an autograd function.

    Raises:
        LadderError: naming each `torch.autograd.Function` that a gradient flows through.
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
    """Raise where torch 2.13 mixes up what it saves of checkpointed layers with DTensors, on a CPU.

    It puts the states of the random generator, kept to recompute dropout and attention alike,
    behind the meshes of the DTensors, and takes the meshes for tensors. `gm` has its regions
    inlined.

    Raises:
        LadderError: naming each random op of a checkpointed layer.
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
    """Whether AOTAutograd takes `node` for random; attention always, dropout of nothing not."""
    name = ops.op_name(node)
    if "dropout" not in name:
        return name in _RANDOM
    given: dict[str, Any] = dict(zip(("input", "p", "training"), node.args, strict=False))
    given |= node.kwargs
    return name in _RANDOM and given.get("p") != 0 and given.get("training") is not False
