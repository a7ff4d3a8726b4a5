"""The lanes of a timeline's steps: compute above communication, exposed time hatched.

compute          [h0][h1]░░░░[h2]
communication        [AR0     ][AR1 …          ░ exposed
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ladderize.report.data import BlockReport
from ladderize.tools import units
from ladderize.tools.plot.palettes import Palette, color_name
from ladderize.tools.predict.timeline.steps import BlockKey, Interval, Lane, Timeline, TimelineStep

LANE, GAP, TITLE, AXIS, GUTTER = 30, 6, 26, 30, 112
STEP_HEIGHT = TITLE + 2 * LANE + GAP + 14
# Width of a letter, and of a label's margins, in pixels.
LETTER, MARGIN = 6.4, 8
# Bars narrower than this many pixels are drawn without an edge, which would fill them.
THIN = 6
# In a lane with more bars, close bars are merged: a trace can hold 100,000 kernels.
MAX_BARS = 2000


@dataclass(frozen=True)
class StepLanes:
    """Steps in a column, on one time axis.

    Attributes:
        timeline: timeline to draw.
        blocks: blocks of the report by key, for their colors.
        titles: title above each step.
        width: width in pixels, with the names of the lanes.
    """

    timeline: Timeline
    blocks: Mapping[BlockKey, BlockReport]
    titles: Sequence[str]
    width: float

    @property
    def height(self) -> float:
        return STEP_HEIGHT * len(self.timeline.steps) + AXIS

    def draw(self, axes: Axes, colors: Palette) -> None:
        axes.set_axis_on()
        box = axes.get_position()
        left, bottom = GUTTER / self.width * box.width, AXIS / self.height * box.height
        axes.set_position((left + box.x0, bottom + box.y0, box.width - left, box.height - bottom))
        axes.set_xlim(0, self.timeline.seconds)
        axes.set_ylim(STEP_HEIGHT * len(self.timeline.steps), 0)
        names: dict[float, str] = {}
        for number, step in enumerate(self.timeline.steps):
            top = number * STEP_HEIGHT + TITLE
            title = axes.text(0, top - 10, self.titles[number], weight="bold", parse_math=False)
            title.set_color(colors["ink"])
            names |= {top + LANE / 2: "compute", top + LANE * 1.5 + GAP: "communication"}
            self._step(axes, colors, step, top)
        axes.set_yticks([*names], [*names.values()], color=colors["muted"])
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", color=colors["line"], labelcolor=colors["muted"])
        axes.xaxis.set_major_locator(MaxNLocator(8))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda time, _: units.seconds(time)))
        for side in axes.spines.values():
            side.set_visible(False)

    def _step(self, axes: Axes, colors: Palette, step: TimelineStep, top: float) -> None:
        low = top + LANE + GAP
        for y in (top, low):
            frame = axes.broken_barh([(0, step.seconds)], (y, LANE), facecolors=colors["page"])
            frame.set_edgecolor(colors["line"])
        closest = step.seconds / MAX_BARS
        exposed = [(start, end - start) for start, end in step.exposed if end - start > closest]
        hatch = axes.broken_barh(exposed, (top, LANE + GAP), facecolors="none", hatch="////")
        hatch.set(edgecolor=colors["exposed"], linewidth=0)
        self._bars(axes, colors, thinned(step.compute, closest), top, None)
        self._bars(axes, colors, thinned(step.communication, closest), low, "reduce")
        axes.broken_barh(exposed, (low + LANE - 3, 3), facecolors=colors["exposed"], zorder=3)

    def _bars(
        self, axes: Axes, colors: Palette, bars: Sequence[Interval], y: float, color: str | None
    ) -> None:
        pixels = (self.width - GUTTER) / self.timeline.seconds
        names = [color or self._color(bar) for bar in bars]
        for name in sorted({*names}):
            spans = [
                (bar.start, bar.seconds) for bar, n in zip(bars, names, strict=True) if n == name
            ]
            is_thin = max(seconds for _, seconds in spans) * pixels < THIN
            drawn = axes.broken_barh(spans, (y, LANE), linewidth=0 if is_thin else 1, zorder=2)
            drawn.set_facecolor(colors[f"{name}-line" if is_thin else name])
            drawn.set_edgecolor(colors[f"{name}-line"])
        for bar in bars:
            label = bar.label.removeprefix("all-reduce ")
            if bar.seconds * pixels >= LETTER * len(label) + MARGIN:
                middle = (bar.start + bar.end) / 2
                text = axes.text(middle, y + LANE / 2, label, ha="center", va="center", zorder=4)
                text.set(color=colors["ink"], parse_math=False)

    def _color(self, bar: Interval) -> str:
        block = self.blocks.get(bar.block) if bar.block else None
        return color_name(block.kind if block else "")


def summary(step: TimelineStep) -> str:
    """`12.3 ms, 4.1 ms exposed, 60 % of the communication hidden`."""
    parts = [units.seconds(step.seconds)]
    if step.hidden_fraction is not None:
        parts.append(f"{units.seconds(step.exposed_seconds)} exposed")
        parts.append(f"{units.percent(step.hidden_fraction)} of the communication hidden")
    return ", ".join(parts)


def beginning(timeline: Timeline, num_collectives: int) -> Timeline:
    """Cut each step where the first one starts collective `num_collectives`, if it has more."""
    starts = [interval.start for interval in timeline.steps[0].communication.intervals]
    if len(starts) <= num_collectives:
        return timeline
    steps = [_until(step, starts[num_collectives]) for step in timeline.steps]
    return dataclasses.replace(timeline, steps=tuple(steps))


def _until(step: TimelineStep, end: float) -> TimelineStep:
    def cut(lane: Lane) -> Lane:
        kept = [interval for interval in lane.intervals if interval.start < end]
        return Lane(tuple(dataclasses.replace(i, end=min(i.end, end)) for i in kept))

    return dataclasses.replace(
        step, compute=cut(step.compute), communication=cut(step.communication)
    )


def thinned(lane: Lane, closest: float) -> Sequence[Interval]:
    """The bars of a lane; if there are many, those that start within `closest` are merged."""
    if len(lane.intervals) <= MAX_BARS:
        return lane.intervals
    groups = groupby(lane.intervals, key=lambda bar: (int(bar.start / closest), bar.block))
    return [_joined(list(group)) for _, group in groups]


def _joined(group: Sequence[Interval]) -> Interval:
    end = max(bar.end for bar in group)
    label = group[0].label if len(group) == 1 else f"{len(group)}: {group[0].label}, …"
    return Interval(group[0].start, end, label, group[0].block)
