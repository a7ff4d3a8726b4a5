"""A timeline as Chrome trace events, which ui.perfetto.dev opens.

process standard ── thread compute        h0   h1 …
                 ├─ thread communication     all-reduce h0 …
                 └─ thread exposed           exposed
process ladder   ── …
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ladderize.errors import LadderError
from ladderize.report.files import write_file
from ladderize.tools.predict.timeline.steps import Interval, Timeline, TimelineStep


def write_perfetto(timeline: Timeline, out: str | Path, force: bool = False) -> Path:
    """Write `timeline` to `out` atomically. Times are in microseconds.

    Raises:
        LadderError: `out` exists and `force` is not set, or the timeline has no steps.
    """
    out = Path(out)
    if not timeline.steps:
        raise LadderError(f"There is no step to write to {out}. {timeline.origin}")
    events = [event for pid, step in enumerate(timeline.steps, 1) for event in _events(step, pid)]
    trace = {
        "displayTimeUnit": "ms",
        "otherData": {"origin": timeline.origin, "written by": "ladderize plot"},
        "traceEvents": events,
    }
    write_file(out, json.dumps(trace) + "\n", force)
    return out


def _events(step: TimelineStep, pid: int) -> Iterator[dict[str, Any]]:
    yield _name("process", step.name, pid, 0)
    exposed = [Interval(start, end, "exposed") for start, end in step.exposed]
    lanes: Sequence[tuple[str, Iterable[Interval]]] = (
        ("compute", step.compute.intervals),
        ("communication", step.communication.intervals),
        ("exposed", exposed),
    )
    for tid, (name, intervals) in enumerate(lanes, 1):
        yield _name("thread", name, pid, tid)
        for interval in intervals:
            yield {
                "ph": "X",
                "cat": name,
                "name": interval.label,
                "pid": pid,
                "tid": tid,
                "ts": interval.start * 1e6,
                "dur": interval.seconds * 1e6,
            }


def _name(what: str, name: str, pid: int, tid: int) -> dict[str, Any]:
    return {"ph": "M", "name": f"{what}_name", "pid": pid, "tid": tid, "args": {"name": name}}
