"""Drop casts to the dtype that a tensor already has, for which `aten.to` returns its operand.

    before   c = to(x0, float32);  h = mean(c);  d = to(c, float32);  x1 = add(d, f(h, d))
    after                          h = mean(x0);                      x1 = add(x0, f(h, x0))

In an ATen trace such a cast is a separate value. One stream value would then have several nodes,
and only one of them would be rerouted.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx import GraphModule, Node

from ladderize.compat.dispatcher import OpOverload
from ladderize.graph import ops
from ladderize.passes import PassResult


@dataclass(frozen=True)
class DropCasts:
    preserves_values: ClassVar[bool] = True

    def __call__(self, gm: GraphModule) -> PassResult:
        dropped = 0
        for node in list(gm.graph.nodes):
            if isinstance(node.target, OpOverload) and ops.op_name(node) == "to":
                base = node.args[0]
                if isinstance(base, Node) and _returns_operand(node, base):
                    dropped += _replace(gm, node, base)
        return PassResult(dropped)


def _replace(gm: GraphModule, cast: Node, base: Node) -> bool:
    """Replace `cast` except as an output, which keeps its name; whether there were readers."""
    readers = [user for user in cast.users if user.op != "output"]
    for reader in readers:
        reader.replace_input_with(cast, base)
    if not cast.users:
        gm.graph.erase_node(cast)
    return bool(readers)


def _returns_operand(cast: Node, base: Node) -> bool:
    """Whether `aten.to` returns its operand itself; False if a copy or memory format is given."""
    value, before = ops.value(cast), ops.value(base)
    is_plain = len(cast.args) <= 2 and not cast.kwargs.keys() & {"copy", "memory_format"}
    return (
        is_plain
        and isinstance(value, torch.Tensor)
        and isinstance(before, torch.Tensor)
        and (value.dtype, value.device, value.layout)
        == (before.dtype, before.device, before.layout)
    )
