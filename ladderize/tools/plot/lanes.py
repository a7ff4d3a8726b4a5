"""The lanes of a step as SVG: compute above communication, what is exposed hatched.

    compute          [h0][h1]░░░░[h2]
    communication        [AR0     ][AR1 …          ░ exposed

Positions across are given as fractions of the longest step, so that one drawing can be stretched.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from ladderize.report.data import BlockReport
from ladderize.tools.plot import units
from ladderize.tools.plot.svg import Markup, tag
from ladderize.tools.plot.theme import kind_class
from ladderize.tools.predict.timeline.steps import BlockKey, Interval, Lane, Step, Timeline

LANE = 30
GUTTER = 112
COMPUTE_TOP, COMMUNICATION_TOP = 26, 26 + LANE + 6
STEP_HEIGHT = COMMUNICATION_TOP + LANE + 14
AXIS_HEIGHT = 26
# Pixels of a letter, and of a label's margins.
LETTER, MARGIN = 6.4, 8
# Bars of fewer pixels have no edge: it would be all that one sees.
THIN = 6
# More bars than this are drawn as one where they stand close: a trace can hold 100,000 kernels.
MAX_BARS = 2000
# Ticks come in levels, the finer ones for those who look closer.
TICK_LEVELS = 3


@dataclass(frozen=True)
class Scale:
    """How a time becomes a position across.

    Attributes:
        seconds: from the left end to the right one.
        at: the attribute for a fraction of that.
        width: in pixels, to judge which labels fit.
    """

    seconds: float
    at: Callable[[float], str]
    width: float

    def x(self, time: float) -> str:
        return self.at(time / self.seconds)

    def pixels(self, duration: float) -> float:
        return duration / self.seconds * self.width


def percents(timeline: Timeline, width: float) -> Scale:
    """Positions as parts of whatever width the page gives."""
    return Scale(timeline.seconds, lambda fraction: f"{100 * fraction:.4f}%", width)


def pixels(timeline: Timeline, left: float, width: float) -> Scale:
    return Scale(timeline.seconds, lambda fraction: f"{left + fraction * width:.2f}", width)


@dataclass(frozen=True)
class StepDrawing:
    """One step, with the blocks of the report by key."""

    step: Step
    scale: Scale
    blocks: Mapping[BlockKey, BlockReport]

    def draw(self) -> Iterator[Markup]:
        step = self.step
        yield self._frame(COMPUTE_TOP)
        yield self._frame(COMMUNICATION_TOP)
        for start, end in thin_spans(step.exposed, step.seconds / MAX_BARS):
            yield self._exposed(start, end)
        for interval in thin(step.compute, step.seconds / MAX_BARS):
            yield self._bar(interval, COMPUTE_TOP, "compute")
        for interval in thin(step.communication, step.seconds / MAX_BARS):
            yield self._bar(interval, COMMUNICATION_TOP, "communication")
        for start, end in thin_spans(step.exposed, step.seconds / MAX_BARS):
            y = COMMUNICATION_TOP + LANE - 1
            x = {"x1": self.scale.x(start), "x2": self.scale.x(end)}
            yield tag("line", class_="exposed-edge", y1=y, y2=y, **x)

    def _frame(self, top: float) -> Markup:
        width = _minus(self.scale, 0, self.step.seconds)
        return tag("rect", class_="lane", x=self.scale.x(0), y=top, width=width, height=LANE)

    def _exposed(self, start: float, end: float) -> Markup:
        return tag(
            "rect",
            class_="hatch",
            x=self.scale.x(start),
            y=COMPUTE_TOP,
            width=_minus(self.scale, start, end),
            height=LANE + 6,
        )

    def _bar(self, interval: Interval, top: float, lane: str) -> Markup:
        block = self.blocks.get(interval.block) if interval.block else None
        is_compute = lane == "compute"
        colour = kind_class(block.kind if block else "") if is_compute else "reduce"
        label = interval.label.removeprefix("all-reduce ")
        needed = LETTER * len(label) + MARGIN
        width = self.scale.pixels(interval.seconds)
        said = self._said(interval, block, is_compute)
        middle = self.scale.x((interval.start + interval.end) / 2)
        return tag(
            "g",
            tag("title", said),
            tag(
                "rect",
                class_=f"bar {colour}" + " thin" * (width < THIN),
                x=self.scale.x(interval.start),
                y=top,
                width=_minus(self.scale, interval.start, interval.end),
                height=LANE,
                rx=3 if width >= THIN else 0.5,
            ),
            tag(
                "text",
                label,
                x=middle,
                y=top + 19,
                text_anchor="middle",
                data_needs=needed,
                visibility="hidden" if width < needed else None,
            ),
            class_="pick" if block is None else "block pick",
            role="img" if block is None else "button",
            tabindex=-1,
            aria_pressed=None if block is None else "false",
            aria_label=said,
            data_block=None if block is None else "-".join(map(str, interval.block or ())),
            data_row=f"{self.step.name} {lane}",
            data_part=f"{interval.seconds / self.scale.seconds:.6f}",
        )

    def _said(self, interval: Interval, block: BlockReport | None, is_compute: bool) -> str:
        kind = f", {block.kind}" if block and is_compute else ""
        times = f"{units.seconds(interval.start)} to {units.seconds(interval.end)}"
        said = (
            f"{self.step.name}: {interval.label}{kind}, {units.seconds(interval.seconds)}, {times}"
        )
        if is_compute:
            return said
        exposed = self.step.exposed_of(interval)
        return f"{said}, {units.seconds(exposed)} exposed" if exposed else f"{said}, hidden"


def _minus(scale: Scale, start: float, end: float) -> str:
    """The attribute of a width, which counts from nothing and not from the left end."""
    if scale.at(0).endswith("%"):
        return scale.x(end - start)
    return f"{scale.pixels(end - start):.2f}"


def gutter(step: Step) -> Iterator[Markup]:
    """What is written to the left of a step; 112 pixels wide."""
    yield tag("text", step.name.capitalize(), class_="title", x=0, y=16)
    for text, top in (("compute", COMPUTE_TOP), ("communication", COMMUNICATION_TOP)):
        yield tag("text", text, class_="quiet", x=0, y=top + 19)


def summary(step: Step) -> str:
    """`12.3 ms, 4.1 ms exposed, 60 % of the communication hidden`."""
    parts = [units.seconds(step.seconds)]
    if step.hidden_fraction is not None:
        parts.append(f"{units.seconds(step.exposed_seconds)} exposed")
        parts.append(f"{units.percent(step.hidden_fraction)} of the communication hidden")
    return ", ".join(parts)


# ---- the axis


def axis(scale: Scale, levels: int = TICK_LEVELS) -> Iterator[Markup]:
    """Ticks of `levels` finenesses, each five times as many; 0 is drawn once."""
    step = tick_step(scale.seconds)
    seen: set[int] = set()
    for level in range(levels):
        finest = 5 ** (levels - 1)
        distance = step / 5**level
        for i in range(int(scale.seconds / distance + 1e-9) + 1):
            place = i * finest // 5**level
            if place in seen:
                continue
            seen.add(place)
            yield from _tick(scale, i * distance, level)


def _tick(scale: Scale, time: float, level: int) -> Iterator[Markup]:
    x = scale.x(time)
    kind = f"tick level-{level}"
    yield tag("line", class_=f"separator {kind}", x1=x, x2=x, y1=0, y2=6)
    anchor = "start" if not time else "end" if time > 0.97 * scale.seconds else "middle"
    text = units.seconds(time) if time else "0"
    yield tag("text", text, class_=f"quiet {kind}", x=x, y=19, text_anchor=anchor)


def tick_step(seconds: float) -> float:
    """Of 1, 2 or 5 times a power of ten: five to twelve ticks."""
    power = 10 ** math.floor(math.log10(seconds))
    fraction = seconds / power
    return float(power) * (
        0.1 if fraction < 1.25 else 0.2 if fraction < 2.5 else 0.5 if fraction < 6 else 1
    )


# ---- a part of a step


def beginning(timeline: Timeline, num_collectives: int) -> Timeline:
    """As much of each step as the first one takes for `num_collectives`; a short one whole."""
    starts = [interval.start for interval in timeline.steps[0].communication.intervals]
    if len(starts) <= num_collectives:
        return timeline
    steps = [_until(step, starts[num_collectives]) for step in timeline.steps]
    return dataclasses.replace(timeline, steps=tuple(steps))


def _until(step: Step, end: float) -> Step:
    def cut(lane: Lane) -> Lane:
        kept = [interval for interval in lane.intervals if interval.start < end]
        return Lane(tuple(dataclasses.replace(i, end=min(i.end, end)) for i in kept))

    return dataclasses.replace(
        step, compute=cut(step.compute), communication=cut(step.communication)
    )


# ---- many bars


def thin(lane: Lane, closest: float) -> Sequence[Interval]:
    """The bars of a lane, those that stand `closest` together as one where there are many."""
    intervals = lane.intervals
    if len(intervals) <= MAX_BARS:
        return intervals
    groups = groupby(
        intervals, key=lambda interval: (int(interval.start / closest), interval.block)
    )
    return [_joined(list(group)) for _, group in groups]


def _joined(group: Sequence[Interval]) -> Interval:
    end = max(interval.end for interval in group)
    label = group[0].label if len(group) == 1 else f"{len(group)}: {group[0].label}, …"
    return Interval(group[0].start, end, label, group[0].block)


def thin_spans(
    spans: Sequence[tuple[float, float]], shortest: float
) -> Sequence[tuple[float, float]]:
    """Without those that nobody could see, where there are many."""
    return spans if len(spans) <= MAX_BARS else [s for s in spans if s[1] - s[0] >= shortest]
