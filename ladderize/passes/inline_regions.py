"""Inline the bodies of checkpointed layers and other regions into the calling graph.

    before   y = tag_activation_checkpoint(body, x, w)       body(a, b): c = linear(a, b); (a + c,)
             z = getitem(y, 0)
    after    c = linear(x, w);  z = add(x, c)                both marked with their region

Only calls with an add in the body are inlined; the others cannot contain a block.
`OutlineRegions` restores the calls.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch.fx import GraphModule, Node

from ladderize.errors import Blocker, LadderError
from ladderize.graph.higher_order import REGION, can_inline, hidden_sums, inline
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


def refuse_sharded_regions(gm: GraphModule) -> None:
    """Raise for inlined regions that sharding loses: all except checkpointed layers.

    Raises:
        LadderError: lists each region with its kind.
    """
    regions = {
        region: node
        for node in gm.graph.nodes
        if REGION in node.meta
        for region in node.meta[REGION].chain()
        if "activation_checkpoint" not in region.target.__name__
    }
    if regions:
        raise LadderError(
            "These regions cannot be sharded:",
            [Blocker.at(node, str(region.target.__name__)) for region, node in regions.items()],
            "call the whole model under that mode (torch.autocast, torch.no_grad) instead of some "
            "of its layers",
        )
