"""The block graph of a stream, standard or ladder, as SVG.

x0 ●──────⊕── x1 ●──────⊕── x2        the stream
    └→ h0 ─AR┘    ┊                    a read, the branch, its all-reduce, the sum
    └┄┄┄┄┄┄┄┄┄┄→ h1 ─AR┘               a stale read
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ladderize.report.data import BlockReport, StreamReport
from ladderize.report.naming import block_name, name, parse
from ladderize.report.present.digraph import staleness_of
from ladderize.tools.plot.layout import COLUMN, FOLD, Column, Fold, Layout
from ladderize.tools.plot.svg import Markup, join, tag
from ladderize.tools.plot.theme import kind_class
from ladderize.tools.plot.wires import arrow_right, arrow_up, wire
from ladderize.tools.predict.timeline.division import Division
from ladderize.tools.predict.timeline.steps import key_of

RAIL = 40
TRACK = 11
BOX_LEFT, BOX_WIDTH, BOX_HEIGHT = 46, 96, 58
SUM = COLUMN - 14
# Letters that fit into a box.
MAX_LETTERS = 15


@dataclass(frozen=True)
class BlockGraph:
    """One net of one stream.

    Attributes:
        is_ladder: draw what blocks read in the rewritten graph, else in the standard one.
        division: which branches end in an all-reduce.
    """

    stream: StreamReport
    layout: Layout
    division: Division
    is_ladder: bool

    @property
    def name(self) -> str:
        return "ladder" if self.is_ladder else "standard"

    @property
    def row(self) -> str:
        """What is one row for those who go through the drawing with arrow keys."""
        first = self.stream.blocks[0]
        return f"{first.graph}-{first.stream} {self.name}"

    @property
    def tracks(self) -> int:
        """How many reads run beside each other, at most: in both nets, so that boxes align."""
        return max(1, *(abs(_staleness(b, r)) for b in self.stream.blocks for r in b.reads_after))

    @property
    def box_top(self) -> float:
        return RAIL + 14 + TRACK * self.tracks + 22

    @property
    def height(self) -> float:
        has_stub = any(_is_far(b, read) for b in self.stream.blocks for read in b.reads_before)
        return self.box_top + BOX_HEIGHT + (30 if has_stub else 10)

    def reads(self, block: BlockReport) -> tuple[str, ...]:
        return block.reads_after if self.is_ladder else block.reads_before

    def draw(self) -> Markup:
        """Behind everything the stream, then the folds, then block by block."""
        return join([*self._stream(), *map(self._fold, self.layout.folds), *self._columns()])

    # ---- the stream

    def _stream(self) -> Iterator[Markup]:
        layout = self.layout
        for heading in layout.headings:
            if heading.left:
                x = heading.left - 14
                yield tag("line", class_="separator", x1=x, x2=x, y1=4, y2=self.height)
            yield tag("text", heading.text, class_="quiet", x=heading.left + 8, y=14)
        yield from self._rail()
        yield self._value(len(self.stream.blocks), layout.end)

    def _rail(self) -> Iterator[Markup]:
        """Dotted where layers are folded."""
        start = min(self.layout.values.values())
        for fold in self.layout.folds:
            left, right = fold.left + 20, fold.left + FOLD - 12
            yield tag("line", class_="rail", x1=start, x2=left, y1=RAIL, y2=RAIL)
            yield tag("line", class_="rail folded-rail", x1=left, x2=right, y1=RAIL, y2=RAIL)
            start = right
        yield tag("line", class_="rail", x1=start, x2=self.layout.end, y1=RAIL, y2=RAIL)

    def _value(self, index: int, x: float) -> Markup:
        text = name("x", self.stream.blocks[0], index - self.stream.blocks[0].index)
        return join(
            [
                tag("circle", class_="value", cx=x, cy=RAIL, r=4.5),
                tag("text", text, class_="quiet", x=x, y=RAIL - 11, text_anchor="middle"),
            ]
        )

    def _fold(self, fold: Fold) -> Markup:
        hidden = fold.last.index - fold.first.index + 1
        graph, stream, _ = key_of(fold.first)
        middle = fold.left + FOLD / 2 + 4
        return tag(
            "g",
            tag("title", f"Show all blocks ({hidden} are folded here)"),
            tag(
                "rect",
                class_="fold-box",
                x=fold.left + 20,
                y=self.box_top,
                width=FOLD - 32,
                height=BOX_HEIGHT,
                rx=8,
            ),
            tag(
                "text", f"{hidden} blocks", class_="kind", x=middle, y=self.box_top + 25, **_MIDDLE
            ),
            tag("text", fold.text, class_="quiet", x=middle, y=self.box_top + 42, **_MIDDLE),
            class_="fold pick",
            role="button",
            tabindex=-1,
            aria_label=f"{hidden} blocks folded: {fold.text}. Press to show every block.",
            data_row=self.row,
            data_stream=f"{graph}-{stream}",
            data_from=fold.first.index,
            data_to=fold.last.index,
        )

    # ---- blocks

    def _columns(self) -> Iterator[Markup]:
        wires = [self._wires(column) for column in self.layout.columns]
        yield from wires
        for fold in self.layout.folds:
            yield from self._read_out_of(fold)
        yield from map(self._block, self.layout.columns)

    def _read_out_of(self, fold: Fold) -> Iterator[Markup]:
        """Values inside of a fold that blocks behind it read."""
        reads = [parse(r) for c in self.layout.columns for r in self.reads(c.block)]
        own = {v.index for v in reads if v.letter == "x" and v.stream == self.stream.index}
        for index in sorted(own - set(self.layout.values)):
            if fold.first.index <= index <= fold.last.index:
                yield self._value(index, self.layout.value(index))

    def _wires(self, column: Column) -> Markup:
        block, left = column.block, column.left
        middle, end = self.box_top + BOX_HEIGHT / 2, left + BOX_LEFT + BOX_WIDTH
        parts = [self._read(column, read) for read in self.reads(block)]
        parts.append(wire([(end, middle), (left + SUM, middle), (left + SUM, RAIL + 9)]))
        parts.append(arrow_up(left + SUM, RAIL + 8))
        parts.append(self._sum(left + SUM))
        parts.append(self._value(block.index, left + 20))
        return tag("g", *parts, data_block=_key(block), class_="wires")

    def _sum(self, x: float) -> Markup:
        cross = f"M{x - 4} {RAIL}H{x + 4}M{x} {RAIL - 4}V{RAIL + 4}"
        return join(
            [
                tag("circle", class_="sum", cx=x, cy=RAIL, r=8),
                tag("path", class_="wire", d=cross),
            ]
        )

    def _read(self, column: Column, read: str) -> Markup:
        block, left = column.block, column.left
        if _is_far(block, read):
            return self._stub(column, read)
        stale = staleness_of(block, read) > 0
        middle, box = self.box_top + BOX_HEIGHT / 2, left + BOX_LEFT
        start = self.layout.value(parse(read).index)
        if parse(read).index == block.index:
            points = [(start, RAIL + 5), (start, middle), (box - 6, middle)]
        else:
            track, down = RAIL + 14 + TRACK * (block.index % self.tracks), left + 4
            across = [(start, RAIL + 5), (start, track), (down, track)]
            points = [*across, (down, middle), (box - 6, middle)]
        prefix = "stale-" if stale else ""
        return join(
            [
                wire(points, f"{prefix}wire"),
                arrow_right(box - 1, middle, f"{prefix}head"),
            ]
        )

    def _stub(self, column: Column, read: str) -> Markup:
        """A read of another stream, or of what is inside of another branch."""
        x, bottom = column.left + BOX_LEFT + BOX_WIDTH / 2, self.box_top + BOX_HEIGHT
        return join(
            [
                wire([(x, bottom + 16), (x, bottom + 7)]),
                arrow_up(x, bottom + 1),
                tag("text", read, class_="quiet", x=x + 8, y=bottom + 17),
            ]
        )

    def _block(self, column: Column) -> Markup:
        block, x = column.block, column.left + BOX_LEFT
        reads = self.reads(block)
        is_stale = any(staleness_of(block, read) > 0 for read in reads)
        layer = "" if block.layer is None else f" · layer {block.layer}"
        lines = (
            (_fit(block.kind), "kind"),
            (f"{block_name(block)}{layer}", "quiet"),
            (
                _fit(f"{'stale' if is_stale else 'reads'} {', '.join(reads)}"),
                "stale-text" * is_stale,
            ),
        )
        middle = x + BOX_WIDTH / 2
        texts = [
            tag("text", text, class_=kind, x=middle, y=self.box_top + 18 + 15 * i, **_MIDDLE)
            for i, (text, kind) in enumerate(lines)
        ]
        box = tag(
            "rect",
            class_=f"box {kind_class(block.kind)}",
            x=x,
            y=self.box_top,
            width=BOX_WIDTH,
            height=BOX_HEIGHT,
            rx=8,
        )
        return tag(
            "g",
            tag("title", block.module),
            box,
            *texts,
            *([self._all_reduce(column)] if self.division.is_reduced(block) else []),
            class_="block pick",
            role="button",
            tabindex=-1,
            aria_pressed="false",
            aria_label=f"{self.name}: {describe(block)}, reads {_said(block, reads)}",
            data_block=_key(block),
            data_row=self.row,
        )

    def _all_reduce(self, column: Column) -> Markup:
        x, y = column.left + SUM, self.box_top - 18
        return join(
            [
                tag("rect", class_="reduce", x=x - 15, y=y, width=30, height=16, rx=8),
                tag("text", "AR", x=x, y=y + 12, text_anchor="middle"),
            ]
        )


_MIDDLE = {"text_anchor": "middle"}


def describe(block: BlockReport) -> str:
    """`h3, MLP, layer 1, model.layers.1.mlp`, for those who hear it."""
    layer = [] if block.layer is None else [f"layer {block.layer}"]
    return ", ".join([block_name(block), block.kind, *layer, *filter(None, [block.module])])


def _said(block: BlockReport, reads: tuple[str, ...]) -> str:
    return ", ".join(f"{r} (stale)" if staleness_of(block, r) > 0 else r for r in reads)


def _key(block: BlockReport) -> str:
    return "-".join(map(str, key_of(block)))


def _is_far(block: BlockReport, read: str) -> bool:
    value = parse(read)
    return value.letter != "x" or value.stream != block.stream


def _staleness(block: BlockReport, read: str) -> int:
    return 0 if _is_far(block, read) else block.index - parse(read).index


def _fit(text: str) -> str:
    return text if len(text) <= MAX_LETTERS else text[: MAX_LETTERS - 1] + "…"
