"""Remove the checks of dtype and device that exported programs have before each cast.

    before   y = mul(x, 2)   _assert_tensor_metadata(y, …, float32)   z = to(y, bfloat16)
    after    y = mul(x, 2)   z = to(y, bfloat16)

The fake values have passed them. A check reads a value, so it would make the value cross a cut.
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
