"""The data of a timeline: frozen dataclasses, with times in seconds from the start of a step.

Timeline ── steps (standard, ladder) ── compute        [h0][h1]    [h2]
                                     └─ communication      [AR0][AR1]
                                        exposed                 ░░░     communication that no
                                                                        compute covers
"""

from dataclasses import dataclass
from functools import cached_property

from ladderize.report.data import BlockReport
from ladderize.tools.predict.timeline.spans import Span, length, merge, subtract

# Graph, stream and index of a block.
BlockKey = tuple[int, int, int]


def key_of(block: BlockReport) -> BlockKey:
    return block.graph, block.stream, block.index


@dataclass(frozen=True)
class Interval:
    """Work that runs from `start` to `end`, with the block that it belongs to, if known."""

    start: float
    end: float
    label: str
    block: BlockKey | None = None

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class Lane:
    """The work of one resource; measured intervals may overlap."""

    intervals: tuple[Interval, ...] = ()

    @cached_property
    def busy(self) -> tuple[Span, ...]:
        return merge((interval.start, interval.end) for interval in self.intervals)

    @property
    def seconds(self) -> float:
        return length(self.busy)

    @property
    def end(self) -> float:
        return self.busy[-1][1] if self.busy else 0.0


@dataclass(frozen=True)
class TimelineStep:
    """One run of a model on one rank.

    Attributes:
        name: "standard" or "ladder".
        compute, communication: lanes of its two resources.
        source: trace file, "" if predicted.
    """

    name: str
    compute: Lane
    communication: Lane
    source: str = ""

    @property
    def seconds(self) -> float:
        return max(self.compute.end, self.communication.end)

    @cached_property
    def exposed(self) -> tuple[Span, ...]:
        """Communication that no compute covers."""
        return subtract(self.communication.busy, self.compute.busy)

    @property
    def exposed_seconds(self) -> float:
        return length(self.exposed)

    @property
    def hidden_fraction(self) -> float | None:
        """Fraction of the communication that compute covers; None without communication."""
        total = self.communication.seconds
        return 1 - self.exposed_seconds / total if total else None

    def exposed_of(self, interval: Interval) -> float:
        """Seconds of `interval` that no compute covers."""
        return length(subtract([(interval.start, interval.end)], self.compute.busy))


@dataclass(frozen=True)
class Timeline:
    """The steps to compare, and one line on their origin (or on why there are none)."""

    steps: tuple[TimelineStep, ...]
    origin: str

    @property
    def seconds(self) -> float:
        """Duration of the longest step."""
        return max((step.seconds for step in self.steps), default=0.0)

    @property
    def speedup(self) -> float | None:
        """Time of the standard step over that of the ladder; None unless both are present."""
        seconds = {step.name: step.seconds for step in self.steps}
        if not seconds.get("standard") or not seconds.get("ladder"):
            return None
        return seconds["standard"] / seconds["ladder"]
