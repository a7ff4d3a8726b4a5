"""Find the collectives that a graph launches, in any dialect.

    torch.ops._c10d_functional.all_reduce(h, "sum", "0")     Dynamo keeps the overload packet
    h.redistribute(…)                                        of a DTensor: depends on placements
    autograd_function_apply(fwd_body, bwd_body, h)           in the bodies: Megatron's f and g
    ladderize.reduce(h, "0")                                 inserted by sharding

Collectives that autograd adds later, such as the gradient of a DTensor's, are not included.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch.fx import GraphModule, Node

from ladderize.errors import describe_origin, module_path
from ladderize.graph import ops
from ladderize.graph.collectives import BACKWARD, launched_by_call, launched_by_own
from ladderize.report.data import CollectiveReport

_DISTRIBUTED = f"{Path(dist.__file__).parent}{os.sep}"
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
# A reduction is at most this many steps after the branches whose partial values it sums.
_STEPS_TO_BRANCH = 4


def find_collectives(
    gm: GraphModule, home: Mapping[Node, str], is_inserted: bool
) -> tuple[CollectiveReport, ...]:
    """The launches of `gm` in graph order; those of its backward only if it will have one.

    Args:
        gm: the graph.
        home: block name of each node in a branch.
        is_inserted: whether to find ladderize's own collectives instead of the model's.
    """
    found = []
    has_backward = _has_backward(gm)
    for node in gm.graph.nodes:
        block = _home_of_inserted(node, home) if is_inserted else home.get(node, "")
        for op, group in launched_by_own(node) if is_inserted else launched_by_call(gm, node):
            if has_backward or not op.endswith(BACKWARD):
                found.append(CollectiveReport(op, group, block, is_inserted, _origin(node)))
    return tuple(found)


def _has_backward(gm: GraphModule) -> bool:
    """Whether gradients are recorded where `gm` was traced. Call it from inside a backend."""
    given = gm.graph.find_nodes(op="placeholder")
    return torch.is_grad_enabled() and any(t.requires_grad for n in given for t in ops.tensors(n))


def _home_of_inserted(node: Node, home: Mapping[Node, str]) -> str:
    """The block that an inserted `node` belongs to: it reads the copy or makes the sum."""
    near = [node, *node.users]
    for _ in range(_STEPS_TO_BRANCH):
        node = next(iter(node.all_input_nodes), node)
        near.append(node)
    return next((home[other] for other in near if other in home), "")


def _origin(node: Node) -> str:
    """Module and line that call the collective, outside of torch.distributed."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    lines = [f"{path}:{line}" for path, line in frames if not path.startswith(_DISTRIBUTED)]
    if not lines:
        return describe_origin(node)
    return " at ".join(filter(None, [module_path(node), lines[-1]]))
