"""Where the columns of a block graph stand: one for each block, or for a run that is folded.

    x0 ─┬──⊕─ x1 ─┬──⊕─ x2 ┄ layers 2-79: as layer 1 ┄ x160
       h0        h1

Standard and ladder share one layout, so that a block stands below itself.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ladderize.report.data import BlockReport, SegmentReport, StreamReport
from ladderize.report.present.lines import alike, shape_of
from ladderize.report.present.repeats import Run, find_runs

COLUMN = 168
FOLD = 232
SEGMENT_GAP = 28
END = 64
# From the left of a column, or of the end, to its value.
VALUE = 20


@dataclass(frozen=True)
class Column:
    """A block with its left edge."""

    block: BlockReport
    left: float


@dataclass(frozen=True)
class Fold:
    """A run of layers that is not drawn: its left edge, what it says, and whose blocks it holds."""

    left: float
    text: str
    first: BlockReport
    last: BlockReport


@dataclass(frozen=True)
class Heading:
    """What stands at the left edge of a segment."""

    left: float
    text: str


@dataclass(frozen=True)
class Layout:
    """Of one stream.

    Attributes:
        values: where each value of the stream stands that is drawn, by its index.
        end: where the last value stands.
    """

    columns: tuple[Column, ...]
    folds: tuple[Fold, ...]
    headings: tuple[Heading, ...]
    values: dict[int, float]
    end: float

    @property
    def width(self) -> float:
        return self.end + END

    def value(self, index: int) -> float:
        """Where value `index` stands; one inside of a fold stands near its end."""
        if index in self.values:
            return self.values[index]
        fold = next(f for f in self.folds if f.first.index <= index <= f.last.index)
        back = fold.last.index - index
        return fold.left + FOLD - 26 - 22 * min(back, 7)


def lay_out(stream: StreamReport, is_full: bool) -> Layout:
    """Lay out every block of `stream`, or fold runs of layers that are alike."""
    columns: list[Column] = []
    folds: list[Fold] = []
    headings: list[Heading] = []
    left = 0.0
    for number, segment in enumerate(stream.segments):
        if len(stream.segments) > 1:
            left += SEGMENT_GAP if number else 0
            text = f"segment {segment.index} of {shape_of(stream, segment.index)}"
            headings.append(Heading(left, text))
        for run in _runs(stream, segment, is_full):
            for block in run.shown:
                columns.append(Column(block, left))
                left += COLUMN
            if run.hidden:
                folds.append(Fold(left, fold_text(run), run.hidden[0], run.hidden[-1]))
                left += FOLD
    values = {column.block.index: column.left + VALUE for column in columns}
    values[len(stream.blocks)] = left + VALUE
    return Layout(tuple(columns), tuple(folds), tuple(headings), values, left + VALUE)


def _runs(stream: StreamReport, segment: SegmentReport, is_full: bool) -> Iterator[Run]:
    blocks = stream.blocks[segment.first : segment.last + 1]
    return iter([Run(blocks)]) if is_full else find_runs(blocks)


def can_fold(streams: Sequence[StreamReport]) -> bool:
    return any(lay_out(stream, is_full=False).folds for stream in streams)


def fold_text(run: Run) -> str:
    """What stands for the hidden layers; their sizes are not looked at when runs are found."""
    period = len(run.pattern)
    sizes = [(b.flops, b.weight_bytes, b.reduce_bytes) for b in (*run.pattern, *run.hidden)]
    is_same = all(size == sizes[i % period] for i, size in enumerate(sizes))
    return alike(run) + ("" if is_same else ", of other sizes")
