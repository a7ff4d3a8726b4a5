"""Inline `no_grad` regions in which no value could require a gradient.

    before   y = wrap_with_set_grad_enabled(False, body, inv_freq, positions)     rotary tables
             cos = getitem(y, 0)
    after    angles = mul(inv_freq, positions);  cos = cos(angles)

Exported programs contain them. Dynamo, at least up to torch 2.13, cannot retrace a region with
symbolic sizes.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch.fx import GraphModule, Node

from ladderize.graph import ops
from ladderize.graph.higher_order import can_inline, inline
from ladderize.passes import PassResult


@dataclass(frozen=True)
class DropGradRegions:
    """Linear.

    Attributes:
        trained: names of inputs that may require gradients.
    """

    trained: frozenset[str]
    preserves_values: ClassVar[bool] = True

    def __call__(self, gm: GraphModule) -> PassResult:
        may_require: set[Node] = set()
        changed = 0
        node: Node = next(iter(gm.graph.nodes))
        while node.op != "output":
            is_trained = node.name in self.trained
            is_behind = is_trained or not may_require.isdisjoint(node.all_input_nodes)
            if is_behind and any(tensor.is_floating_point() for tensor in ops.tensors(node)):
                may_require.add(node)
            elif ops.op_name(node) == "wrap_with_set_grad_enabled" and can_inline(gm, node):
                node = inline(gm, node, is_kept=False)
                changed += 1
                continue
            node = node.next
        return PassResult(changed)
