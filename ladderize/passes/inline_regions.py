"""Take the bodies of checkpointed layers and other regions into the graph that calls them.

    before   y = tag_activation_checkpoint(body, x, w)       body(a, b): c = linear(a, b); (a + c,)
             z = getitem(y, 0)
    after    c = linear(x, w);  z = add(x, c)                both marked with their region

Only calls whose body holds an add are taken apart: in the others there can be no block.
`OutlineRegions` puts them together again.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch.fx import GraphModule, Node

from ladderize.graph.higher_order import can_inline, hidden_sums, inline
from ladderize.passes import PassResult


@dataclass(frozen=True)
class InlineRegions:
    preserves_values: ClassVar[bool] = True

    def __call__(self, gm: GraphModule) -> PassResult:
        changed = 0
        node: Node = next(iter(gm.graph.nodes))
        while node.op != "output":
            if _can_inline(gm, node):
                node = inline(gm, node)
                changed += 1
            else:
                node = node.next
        return PassResult(changed)


def _can_inline(gm: GraphModule, node: Node) -> bool:
    return bool(hidden_sums(gm, node)) and can_inline(gm, node)
