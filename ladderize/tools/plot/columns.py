"""The positions of the columns of a block graph: one for each block or folded run.

    x0 ─┬──⊕─ x1 ─┬──⊕─ x2 ┄ layers 2-79: as layer 1 ┄ x160
       h0        h1

Standard and ladder share the columns, so each block is drawn below itself.
"""

from dataclasses import dataclass, field

from ladderize.report.data import BlockReport, StreamReport
from ladderize.report.present.lines import Gap, alike, runs_of
from ladderize.report.present.repeats import Run

COLUMN, FOLD, SEGMENT_GAP, END = 168, 232, 28, 64
# Offset of a value from the left edge of its column, or of the end.
VALUE = 20


@dataclass(frozen=True)
class Fold:
    """A run of layers that is not drawn: its left edge, its text and its blocks."""

    left: float
    text: str
    hidden: tuple[BlockReport, ...]


@dataclass
class Columns:
    """The columns of one stream.

    Attributes:
        blocks: drawn blocks, with their left edges.
        folds: folded runs.
        headings: titles of segments, with their left edges.
        width: width of the drawing, in pixels.
    """

    blocks: list[tuple[BlockReport, float]] = field(default_factory=list)
    folds: list[Fold] = field(default_factory=list)
    headings: list[tuple[str, float]] = field(default_factory=list)
    width: float = 0.0

    @property
    def end(self) -> float:
        """The position of the last value."""
        return self.width - END + VALUE

    def place(self, index: int) -> float:
        """The position of value `index` of the stream; values in a fold are drawn near its end."""
        for block, left in self.blocks:
            if block.index == index:
                return left + VALUE
        for fold in self.folds:
            if fold.hidden[0].index <= index <= fold.hidden[-1].index:
                return fold.left + FOLD - 26 - 22 * min(fold.hidden[-1].index - index, 7)
        return self.end


def columns_of(stream: StreamReport) -> Columns:
    found, left = Columns(), 0.0
    for run in runs_of(stream):
        if isinstance(run, Gap):
            left += SEGMENT_GAP if found.headings else 0
            found.headings.append((run.text, left))
            continue
        for block in run.shown:
            found.blocks.append((block, left))
            left += COLUMN
        if run.hidden:
            found.folds.append(Fold(left, fold_text(run), run.hidden))
            left += FOLD
    found.width = left + END
    return found


def fold_text(run: Run) -> str:
    """The text of a fold. It compares sizes, which `find_runs` does not."""
    period = len(run.pattern)
    sizes = [(b.flops, b.weight_bytes, b.reduce_bytes) for b in (*run.pattern, *run.hidden)]
    is_same = all(size == sizes[i % period] for i, size in enumerate(sizes))
    return alike(run) + ("" if is_same else ", with other sizes")
