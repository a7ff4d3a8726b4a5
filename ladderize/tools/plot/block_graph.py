"""The block graph of a stream, standard or ladder.

x0 ●──────⊕── x1 ●──────⊕── x2        the stream
    └→ h0 ─AR┘    ┊                    a read, the branch, its all-reduce, the sum
    └┄┄┄┄┄┄┄┄┄┄→ h1 ─AR┘               a stale read
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyBboxPatch, Patch, Polygon

from ladderize.report.data import BlockReport, StreamReport
from ladderize.report.naming import block_name, name, parse
from ladderize.report.present.digraph import staleness_of
from ladderize.tools.plot.columns import COLUMN, FOLD, VALUE, Columns, Fold
from ladderize.tools.plot.palettes import Palette, color_name
from ladderize.tools.predict.timeline.division import Division
from ladderize.tools.predict.timeline.steps import key_of

Point = tuple[float, float]

RAIL, TRACK = 40, 11
BOX_LEFT, BOX_WIDTH, BOX_HEIGHT = 46, 96, 58
SUM = COLUMN - 14
# Number of letters that fit into a box.
MAX_LETTERS = 15


@dataclass(frozen=True)
class BlockGraph:
    """One network of one stream, in pixels from the top left.

    Attributes:
        is_ladder: whether to draw the reads of the rewritten graph instead of the standard one.
        division: tells which branches end in an all-reduce.
    """

    stream: StreamReport
    columns: Columns
    division: Division
    is_ladder: bool

    @property
    def tracks(self) -> int:
        """Number of tracks for parallel reads in either network, so that their boxes align."""
        return max(1, *(abs(_distance(b, r)) for b in self.stream.blocks for r in b.reads_after))

    @property
    def top(self) -> float:
        """The top edge of the boxes."""
        return RAIL + 14 + TRACK * self.tracks + 22

    @property
    def width(self) -> float:
        return self.columns.width

    @property
    def height(self) -> float:
        has_stub = any(_is_far(b, read) for b in self.stream.blocks for read in b.reads_before)
        return self.top + BOX_HEIGHT + (30 if has_stub else 10)

    def reads(self, block: BlockReport) -> tuple[str, ...]:
        return block.reads_after if self.is_ladder else block.reads_before

    def draw(self, axes: Axes, colors: Palette) -> None:
        pen = _Pen(axes, colors)
        for text, left in self.columns.headings:
            pen.text(text, left + 8, 10, "muted", ha="left")
            if left:
                pen.line([(left - 14, 4), (left - 14, self.height)], "line", 1)
        pen.line([(VALUE, RAIL), (self.columns.end, RAIL)], "rail", 2)
        for fold in self.columns.folds:
            self._fold(pen, fold)
        for block, left in self.columns.blocks:
            self._wires(pen, block, left)
        for index in {*self._read_values(), len(self.stream.blocks)}:
            self._value(pen, index)
        for block, left in self.columns.blocks:
            self._block(pen, block, left)

    def _read_values(self) -> set[int]:
        """The values to draw: those of the columns, and those inside folds that blocks read."""
        blocks = [block for block, _ in self.columns.blocks]
        reads = [r for b in blocks for r in self.reads(b) if not _is_far(b, r)]
        return {block.index for block in blocks} | {parse(read).index for read in reads}

    def _value(self, pen: "_Pen", index: int) -> None:
        x, first = self.columns.place(index), self.stream.blocks[0]
        pen.circle(x, RAIL, 4.5)
        pen.text(name("x", first, index - first.index), x, RAIL - 16, "muted")

    def _fold(self, pen: "_Pen", fold: Fold) -> None:
        left, right = fold.left + 20, fold.left + FOLD - 12
        pen.line([(left, RAIL), (right, RAIL)], "panel", 3)
        pen.line([(left, RAIL), (right, RAIL)], "rail", 2, linestyle=(0, (1, 3)))
        pen.box(left, self.top, right - left, BOX_HEIGHT, "panel", "rail", (0, (2, 3)))
        middle = (left + right) / 2
        pen.text(f"{len(fold.hidden)} blocks", middle, self.top + 21, "ink", weight="bold")
        pen.text(fold.text, middle, self.top + 38, "muted")

    def _wires(self, pen: "_Pen", block: BlockReport, left: float) -> None:
        middle, end = self.top + BOX_HEIGHT / 2, left + BOX_LEFT + BOX_WIDTH
        for read in self.reads(block):
            self._read(pen, block, read, left)
        out = [(end, middle), (left + SUM, middle), (left + SUM, RAIL + 9)]
        pen.arrow(out, "rail", 1.5)
        pen.circle(left + SUM, RAIL, 8)
        for across, up in ((4, 0), (0, 4)):
            ends = [(left + SUM - across, RAIL - up), (left + SUM + across, RAIL + up)]
            pen.line(ends, "rail", 1.5, zorder=4)

    def _read(self, pen: "_Pen", block: BlockReport, read: str, left: float) -> None:
        middle, box = self.top + BOX_HEIGHT / 2, left + BOX_LEFT
        if _is_far(block, read):  # another stream, or a value inside another branch
            x, bottom = box + BOX_WIDTH / 2, self.top + BOX_HEIGHT
            pen.arrow([(x, bottom + 18), (x, bottom + 1)], "rail", 1.5)
            pen.text(read, x + 8, bottom + 14, "muted", ha="left")
            return
        start = self.columns.place(parse(read).index)
        points = [(start, RAIL + 5), (start, middle), (box - 1, middle)]
        if parse(read).index != block.index:
            track, down = RAIL + 14 + TRACK * (block.index % self.tracks), left + 4
            points[1:2] = [(start, track), (down, track), (down, middle)]
        if staleness_of(block, read) > 0:
            pen.arrow(points, "stale", 2, linestyle=(0, (3, 2)))
        else:
            pen.arrow(points, "rail", 1.5)

    def _block(self, pen: "_Pen", block: BlockReport, left: float) -> None:
        x, reads, color = left + BOX_LEFT, self.reads(block), color_name(block.kind)
        is_stale = any(staleness_of(block, read) > 0 for read in reads)
        pen.box(x, self.top, BOX_WIDTH, BOX_HEIGHT, color, f"{color}-line")
        layer = "" if block.layer is None else f" · layer {block.layer}"
        middle, verb = x + BOX_WIDTH / 2, "stale" if is_stale else "reads"
        pen.text(_fit(block.kind), middle, self.top + 14, "ink", weight="bold")
        row = f"#block-{'-'.join(map(str, key_of(block)))}"
        pen.text(f"{block_name(block)}{layer}", middle, self.top + 29, "muted", url=row)
        said = _fit(f"{verb} {', '.join(reads)}")
        pen.text(said, middle, self.top + 44, "stale" if is_stale else "ink")
        if self.division.is_reduced(block):
            pen.box(left + SUM - 15, self.top - 18, 30, 16, "reduce", "reduce-line")
            pen.text("AR", left + SUM, self.top - 10, "ink")


@dataclass(frozen=True)
class _Pen:
    """Draws on axes in the colors of a palette, by name."""

    axes: Axes
    colors: Palette

    def line(self, points: Sequence[Point], color: str, width: float, **style: Any) -> None:
        line = Line2D(*zip(*points, strict=True), color=self.colors[color], linewidth=width)
        line.set(**style)
        self.axes.add_line(line)

    def arrow(self, points: Sequence[Point], color: str, width: float, **style: Any) -> None:
        """A line with a head at its end, which points right or up."""
        (_, before), (x, y) = points[-2:]
        head = [(x, y), (x - 8, y - 4.5), (x - 8, y + 4.5)]
        base = (x - 8, y)
        if before != y:
            head, base = [(x, y), (x - 4.5, y + 8), (x + 4.5, y + 8)], (x, y + 8)
        self.line([*points[:-1], base], color, width, **style)
        self.axes.add_patch(Polygon(head, color=self.colors[color], linewidth=0))

    def shape(self, patch: Patch, fill: str, edge: str, dashes: Any = "-") -> None:
        patch.set(facecolor=self.colors[fill], edgecolor=self.colors[edge])
        patch.set(linewidth=1.5, linestyle=dashes, zorder=3)
        self.axes.add_patch(patch)

    def circle(self, x: float, y: float, radius: float) -> None:
        self.shape(Circle((x, y), radius), "panel", "rail")

    def box(self, x: float, y: float, width: float, height: float, *colors: Any) -> None:
        style = "round,pad=0,rounding_size=8"
        self.shape(FancyBboxPatch((x, y), width, height, style), *colors)

    def text(self, text: str, x: float, y: float, color: str, **style: Any) -> None:
        drawn = self.axes.text(x, y, text, ha="center", va="center", zorder=4)
        drawn.set(color=self.colors[color], parse_math=False, **style)


def _is_far(block: BlockReport, read: str) -> bool:
    value = parse(read)
    return value.letter != "x" or value.stream != block.stream


def _distance(block: BlockReport, read: str) -> int:
    return 0 if _is_far(block, read) else block.index - parse(read).index


def _fit(text: str) -> str:
    return text if len(text) <= MAX_LETTERS else text[: MAX_LETTERS - 1] + "…"
