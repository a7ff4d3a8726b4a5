"""Leave out the checks of dtype and device, of which exported programs have one ahead of each cast.

    before   y = mul(x, 2)   _assert_tensor_metadata(y, …, float32)   z = to(y, bfloat16)
    after    y = mul(x, 2)   z = to(y, bfloat16)

The fake values have passed them. A check reads a value, and so would make it cross what the graph
is cut at.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx import GraphModule

from ladderize.passes import PassResult

_CHECK = torch.ops.aten._assert_tensor_metadata.default


@dataclass(frozen=True)
class DropChecks:
    preserves_values: ClassVar[bool] = True

    def __call__(self, gm: GraphModule) -> PassResult:
        checks = gm.graph.find_nodes(op="call_function", target=_CHECK)
        for node in checks:
            gm.graph.erase_node(node)
        return PassResult(len(checks))
