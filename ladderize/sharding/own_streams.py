"""Give each rank its own stream between reductions: the desync residual (arXiv 2501.06589).

    a reduction per branch     x1 = add(x0, reduce(p0))    x2 = add(x1, reduce(p1))
    every second branch        x1 = add(x0, p0)            x2 = reduce(add(p1, div(x1, ranks)))

A branch computes with its rank's stream instead of the common one. A reduction computes the mean of
the streams plus the sum of the ranks' parts of its own branch. As in the authors' code, a bias is
added once, and the contributions of blocks between reductions are averaged, not summed.

Gradients: values that are the same on all ranks, such as norm weights, enter the streams by `copy`,
so their gradients are summed over the ranks. Values of the streams enter branches directly.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from torch.fx import GraphModule, Node

from ladderize.errors import Blocker, LadderError
from ladderize.sharding.edits import BranchEntry, Reduction
from ladderize.sharding.layer_sums import whole_sum
from ladderize.sharding.propagate import Propagation
from ladderize.streams.block import Block, Stream

Reductions = Sequence[Sequence[Reduction]]


def unreduced_blocks(streams: Sequence[Stream], period: int) -> frozenset[Block]:
    """The blocks that are not reduced if every `period`-th block and the last of a segment are.

    The prologue is reduced and not counted. With a `period` of 0, all blocks are reduced.
    """
    found: set[Block] = set()
    for stream in streams if period else ():
        for segment in {block.segment for block in stream.blocks}:
            blocks = [b for b in stream.blocks if b.segment == segment and not b.is_prologue]
            found.update(b for i, b in enumerate(blocks[:-1], 1) if i % period)
    return frozenset(found)


@dataclass(frozen=True)
class OwnStreams:
    """The values that differ between ranks, and the resulting edits of a plan.

    Attributes:
        found: propagation of the branches.
        sums: reduction of each block.
        unreduced: blocks that are not reduced.
        own: values of the ranks' own streams, and values computed from them.
        gradients: values that carry gradients.
    """

    found: Propagation
    sums: tuple[Reduction, ...]
    unreduced: frozenset[Block]
    own: dict[Node, None]
    gradients: Collection[Node]

    @classmethod
    def of(
        cls,
        gm: GraphModule,
        found: Propagation,
        per_block: Reductions,
        unreduced: frozenset[Block],
        gradients: Collection[Node],
    ) -> "OwnStreams":
        """Find the own streams of a graph.

        Raises:
            LadderError: a branch does not end in a single sum, or the graph returns a value that
                differs between ranks.
        """
        pairs = list(zip(found.branches, per_block, strict=True))
        sums = [whole_sum(block, own) for block, own in pairs]
        blockers = [
            Blocker.at(block.add, f"block {block.index} is {_why_not(own)}")
            for (block, own), total in zip(pairs, sums, strict=True)
            if total is None or total.others
        ]
        streams = _own_values(gm, found.branches, unreduced)
        (output,) = gm.graph.find_nodes(op="output")
        blockers += [
            Blocker.at(node, f"{node} is returned, and differs between ranks")
            for node in output.all_input_nodes
            if node in streams
        ]
        if blockers:
            raise LadderError(
                "These blocks cannot have streams of their own on each rank:",
                blockers,
                "choose another variant, or a number of ranks that divides every branch",
            )
        plain = tuple(total for total in sums if total is not None)
        return cls(found, plain, unreduced, streams, gradients)

    def reductions(self) -> tuple[Reduction, ...]:
        """The reductions of the plan, changed for the own streams."""
        return tuple(map(self._reduction, self.found.branches, self.sums))

    def _reduction(self, block: Block, total: Reduction) -> Reduction:
        is_own = block.skip in self.own
        if block in self.unreduced:
            copies_skip = not is_own and block.skip in self.gradients
            return replace(total, is_sent=False, copies_skip=copies_skip)
        return replace(total, sends_skip=is_own)

    def entries(self, entries: Sequence[BranchEntry]) -> tuple[BranchEntry, ...]:
        """The entries of the plan, without copies of stream values, plus those of common values."""
        inside = [replace(e, needs_copy=False) if e.value in self.own else e for e in entries]
        kept = [entry for entry in inside if entry.needs_copy or entry.index]
        given = {(entry.user, entry.value) for entry in entries}
        return (*kept, *self._common(given))

    def _common(self, given: Collection[tuple[Node, Node]]) -> Iterator[BranchEntry]:
        sums = {block.add for block in self.found.branches}
        for node in self.own:
            for value in () if node in sums else node.all_input_nodes:
                is_bias = value in self.found.biases.get(node, ())  # added behind the sum
                if (node, value) not in given and not is_bias and self._is_common(value):
                    yield BranchEntry(node, value, needs_copy=True)

    def _is_common(self, value: Node) -> bool:
        """Whether `value` is the same on all ranks and carries a gradient."""
        if value in self.own or value not in self.gradients:
            return False
        parameter = self.found.parameter(value)
        if parameter is not None and parameter in self.found.placements():
            return False
        placed = self.found.values.get(value)
        return placed is None or (not isinstance(placed, tuple) and placed.is_replicated)


def _why_not(reductions: Sequence[Reduction]) -> str:
    return "summed up inside of its branch" if reductions else "not divided over the ranks"


def _own_values(
    gm: GraphModule, blocks: Sequence[Block], unreduced: Collection[Block]
) -> dict[Node, None]:
    """The values outside of sharded computation that differ between ranks, in graph order."""
    reduced = {block.add for block in blocks if block not in unreduced}
    begins = {block.add for block in unreduced}
    own: dict[Node, None] = {}
    for node in gm.graph.nodes:
        if node in reduced or node.op == "output":
            continue
        if node in begins or any(source in own for source in node.all_input_nodes):
            own[node] = None
    return own
