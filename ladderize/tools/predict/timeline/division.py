"""How the blocks of a graph are divided over ranks, read from its report."""

from dataclasses import dataclass

from ladderize.report.data import BlockReport, GraphReport
from ladderize.report.naming import block_name


@dataclass(frozen=True)
class Division:
    """Which blocks of a graph end in an all-reduce, and over how many ranks the work is divided.

    Attributes:
        reduced: names of blocks that end in an all-reduce; None if unknown, which means all.
        is_local: whether the captured graph was already sharded, so its sizes are those of a rank.
    """

    reduced: frozenset[str] | None
    is_local: bool

    @classmethod
    def of(cls, graph: GraphReport) -> "Division":
        inside = [c for c in graph.collectives if c.block and "backward" not in c.op]
        if not inside:
            return cls(None, False)
        is_local = not any(c.is_inserted for c in inside)
        return cls(frozenset(c.block for c in inside), is_local)

    def is_reduced(self, block: BlockReport) -> bool:
        return self.reduced is None or block_name(block) in self.reduced

    def ranks(self, block: BlockReport, ranks: int) -> int:
        """The number of ranks to divide the sizes of `block` by: `ranks`, or 1."""
        return ranks if self.is_reduced(block) and not self.is_local else 1
