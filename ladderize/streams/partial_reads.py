"""Reads of the stream without some summands of the block before, and how to compute them.

    standard     y3 = add(x3, add(routed, shared));   x4 = norm(y3);             h4(x4)
    partial      y3 = add(x3, add(routed, shared));   r4 = norm(add(x3, shared));   h4(r4)

The ops between a sum and the next anchor are applied to the partial sum as well. `build` defines
this once for graphs, for the values of a run, and for symbols.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from torch.fx import Node

from ladderize.errors import Blocker, LadderError
from ladderize.graph import ops
from ladderize.graph.ops import Kind
from ladderize.streams.block import Block
from ladderize.streams.contributions import Contribution
from ladderize.streams.summands import Step

Value = TypeVar("Value")


@dataclass(frozen=True, eq=False)
class PartialRead:
    """A read of a partial sum in place of the anchor.

    Attributes:
        block: block that reads.
        before: contribution of the block before it.
        steps: ops from the sum of that block to the anchor, in order.
    """

    block: Block
    before: Contribution
    steps: tuple[Node, ...]

    @classmethod
    def of(cls, block: Block, before: Contribution) -> "PartialRead":
        return cls(block, before, _steps(before.block.add, block.anchor))

    def build(
        self,
        value_of: Callable[[Node], Value],
        call: Callable[[Node, Mapping[Node, Value]], Value],
        add: Callable[[Value, Value], Value],
    ) -> Value:
        """Compute the value that is read.

        Args:
            value_of: returns the value of a node of the standard graph.
            call: returns the value of a node with other values for some of its operands.
            add: returns the sum of two values.
        """
        total = value_of(self.before.block.skip)
        for summand in self.before.landed:
            total = add(total, _on_its_way(value_of(summand.value), summand.steps, call))
        made = {self.before.block.add: total}
        for step in self.steps:
            made[step] = call(step, {n: made[n] for n in step.all_input_nodes if n in made})
        return made[self.block.anchor]


def _on_its_way(
    value: Value,
    steps: tuple[Step, ...],
    call: Callable[[Node, Mapping[Node, Value]], Value],
) -> Value:
    for step, operand in steps:
        value = call(step, {operand: value})
    return value


def _steps(start: Node, end: Node) -> tuple[Node, ...]:
    """The nodes on paths from `start` to `end`, without `start`, in graph order."""
    behind: set[Node] = set()
    stack = [end]
    while stack:
        node = stack.pop()
        if node > start and node not in behind:
            behind.add(node)
            stack.extend(node.all_input_nodes)
    reached = {start}
    for node in sorted(behind):
        if not reached.isdisjoint(node.all_input_nodes):
            reached.add(node)
    steps = tuple(node for node in sorted(behind) if node in reached)
    mixing = [node for node in steps if ops.kind(node) not in (Kind.CHEAP, Kind.LAYOUT, Kind.ADD)]
    if mixing:
        raise LadderError(
            "The ops between these blocks cannot be applied without the summands in flight:",
            [Blocker.at(node, f"{ops.op_name(node)} mixes the sum of a block") for node in mixing],
            "leave out the blocks after it with blocks=; or use connectivity='ladder'",
        )
    return steps
