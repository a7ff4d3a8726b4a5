"""Split fused sums into separate adds, so that the analysis sees their summands.

    before   x1 = addmm(x0, h, w);           x2 = addcmul(x1, gain, h)
    after    x1 = add(x0, mm(h, w));         x2 = add(x1, mul(gain, h))

Applies only if the first operand has the shape of the result: a bias is not a residual summand.
Values are preserved up to rounding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.fx import GraphModule, Node

from ladderize import compat
from ladderize.compat.dispatcher import OpOverload
from ladderize.graph import ops
from ladderize.graph.fake_values import KEYS
from ladderize.passes import PassResult

aten = torch.ops.aten

# For each fused op, its product in the dialects of Dynamo and ATen.
_PRODUCTS: Mapping[str, tuple[Any, Any]] = {
    "addmm": (torch.mm, aten.mm.default),
    "baddbmm": (torch.bmm, aten.bmm.default),
    "addcmul": (torch.mul, aten.mul.Tensor),
}


@dataclass(frozen=True)
class SpellSums:
    preserves_values: ClassVar[bool] = True

    def __call__(self, gm: GraphModule) -> PassResult:
        fused = [node for node in gm.graph.nodes if _is_fused_sum(node)]
        for node in fused:
            _spell_out(gm, node)
        return PassResult(len(fused))


def _is_fused_sum(node: Node) -> bool:
    """Whether `node` fuses a product and an unscaled first operand of the result's shape."""
    if ops.op_name(node) not in _PRODUCTS or node.kwargs or len(node.args) != 3:
        return False
    kept = node.args[0]
    shape = ops.floating_shape(node)
    return isinstance(kept, Node) and shape is not None and ops.floating_shape(kept) == shape


def _spell_out(gm: GraphModule, node: Node) -> None:
    kept, left, right = node.args
    is_aten = isinstance(node.target, OpOverload)
    product, add = _PRODUCTS[ops.op_name(node)][is_aten], (torch.add, aten.add.Tensor)[is_aten]
    with gm.graph.inserting_before(node):
        made = gm.graph.call_function(product, (left, right))
        total = gm.graph.call_function(add, (kept, made))
    made.meta, total.meta = dict(node.meta), dict(node.meta)
    values = [
        ops.value(operand) if isinstance(operand, Node) else operand for operand in (left, right)
    ]
    with compat.fake_mode_of(values), torch.no_grad():
        value = product(*values)
    made.meta.update({key: value for key in KEYS if key in node.meta})
    node.replace_all_uses_with(total)
    gm.graph.erase_node(node)
