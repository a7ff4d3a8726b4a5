"""The reads that the ladder reroutes, printed like a diff.

@@ h1 · layer 0 · model.layers.0.mlp @@
-y1 = x1 + h1(x1)
+y1 = x1 + h1(x0)
"""

from dataclasses import dataclass

from ladderize.report.data import BlockReport, ReportData
from ladderize.report.naming import block_name, name


@dataclass(frozen=True)
class Rewired:
    """A branch whose reads have changed.

    Attributes:
        block: report of its block.
        module: module of the block.
        before, after: values that its branch reads in the standard and the rewritten graph.
    """

    block: BlockReport
    module: str
    before: tuple[str, ...]
    after: tuple[str, ...]

    def __str__(self) -> str:
        layer = [] if self.block.layer is None else [f"layer {self.block.layer}"]
        place = " · ".join(filter(None, [block_name(self.block), *layer, self.module]))
        return "\n".join(
            [
                f"@@ {place} @@",
                f"-{_equation(self.block, self.before)}",
                f"+{_equation(self.block, self.after)}",
            ]
        )


class Diff(tuple[Rewired, ...]):
    """The rewired branches, in graph order."""

    def __str__(self) -> str:
        return "\n".join(map(str, self)) if self else "no read is rewired"


def diff_of(report: ReportData) -> Diff:
    return Diff(
        Rewired(block, block.module, block.reads_before, block.reads_after)
        for block in report.blocks
        if block.is_rewired
    )


def _equation(block: BlockReport, reads: tuple[str, ...]) -> str:
    value, anchor = name("y", block), name("x", block)
    return f"{value} = {anchor} + {block_name(block)}({', '.join(reads)})"
