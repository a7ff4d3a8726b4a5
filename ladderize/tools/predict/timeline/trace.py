"""Read steps from `torch.profiler` traces (`export_chrome_trace`: Kineto's JSON, or .gz of it).

    CUDA    compute         kernels, copies and sets of the busiest device
            communication   kernels of NCCL and RCCL, and torch's symmetric-memory all-reduces
    CPU     compute         ops (`aten::mm`, …) of the busiest thread, without their waits
            communication   `gloo:all_reduce` and the like, on gloo's threads

A gloo event starts when gloo's thread takes up the collective and includes waiting for stragglers.
Inductor's CPU kernels are in a trace only with
`torch._inductor.config.cpp.enable_kernel_profile = True`.

If the trace has steps (`prof.step()`), the one of median length is used, otherwise all of it.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ladderize.compat.json_files import read_json
from ladderize.errors import LadderError
from ladderize.report.naming import block_name
from ladderize.report.report import Report
from ladderize.tools.predict.timeline.spans import Span, length, merge, subtract
from ladderize.tools.predict.timeline.steps import Interval, Lane, Timeline, TimelineStep, key_of

Event = Mapping[str, Any]

_ON_DEVICE = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
_COMMUNICATING_KERNEL = re.compile(r"nccl|rccl|^(one|two)_shot_all_reduce|^multimem_", re.I)
_COMMUNICATION_ON_CPU = re.compile(r"^(gloo|mpi|ucc|xccl):")
# Ops have a namespace; wrappers of ops (`Torch-Compiled Region: 0/0`) have none.
_OP = re.compile(r"\w+::\w+|.*cpp_fused.*")
# Launches and waits are not compute. A wait can be inside an op: the wait of an
# AsyncCollectiveTensor is in the first op that reads it.
_WAITING = re.compile(r"_?c10d(_functional)?::")
_STEP = re.compile(r"ProfilerStep#\d+")
_MOST_BYTES = 256 * 2**20
_HOW = (
    "with torch.profiler.profile() as prof: …; prof.export_chrome_trace(path) on one rank writes a "
    "trace"
)


def measure(
    report: Report, standard: str | Path | None = None, ladder: str | Path | None = None
) -> Timeline:
    """Read the steps in the `torch.profiler` traces at `standard` and `ladder`; one may be None.

    If a step has as many all-reduces as `report` has blocks, they are assigned to the blocks in
    order, because collectives are never reordered. Otherwise no interval has a block.

    Raises:
        LadderError: no trace is given, or one cannot be read.
    """
    given = [(name, path) for name, path in (("standard", standard), ("ladder", ladder)) if path]
    if not given:
        raise LadderError("No trace is given.", cure="give that of the standard model or ladder")
    steps = tuple(_assign(read_step(path, name), report) for name, path in given)
    files = ", ".join(f"{step.source} ({step.name})" for step in steps)
    return Timeline(steps, f"measured by torch.profiler: {files}")


def _assign(step: TimelineStep, report: Report) -> TimelineStep:
    reduces = [i for i in step.communication.intervals if _is_all_reduce(i.label)]
    if len(reduces) != len(report.blocks):
        return step
    blocks = dict(zip(map(id, reduces), report.blocks, strict=True))
    intervals = tuple(
        dataclasses.replace(
            interval, label=f"{interval.label} {block_name(block)}", block=key_of(block)
        )
        if (block := blocks.get(id(interval)))
        else interval
        for interval in step.communication.intervals
    )
    return dataclasses.replace(step, communication=Lane(intervals))


def _is_all_reduce(label: str) -> bool:
    return "allreduce" in label.lower().replace("_", "")


def read_step(path: str | Path, name: str) -> TimelineStep:
    """Read the trace at `path` as a step called `name`.

    Raises:
        LadderError: the file does not exist, is not a trace, or has no compute.
    """
    path = Path(path)
    events = _from_zero([event for event in _read_events(path) if _is_complete(event)])
    on_device = [event for event in events if event.get("cat") in _ON_DEVICE]
    compute, communication = _device_lanes(events) if on_device else _cpu_lanes(events)
    if not compute:
        raise LadderError(
            f"{path} has no ops or kernels: nothing was computed while it was recorded.",
            cure=_HOW,
        )
    start = min(interval.start for interval in (*compute, *communication))
    return TimelineStep(name, _lane(compute, start), _lane(communication, start), path.name)


def _read_events(path: Path) -> list[Any]:
    trace = read_json(path, "trace", _HOW, most_bytes=_MOST_BYTES)
    events = trace.get("traceEvents") if isinstance(trace, dict) else trace
    if not isinstance(events, list):
        raise LadderError(f"{path} is not a trace: it has no list of traceEvents.", cure=_HOW)
    return events


def _is_complete(event: Any) -> bool:
    """Whether an entry is an event with a start and a duration; others are not needed."""
    return (
        isinstance(event, dict)
        and event.get("ph") == "X"
        and isinstance(event.get("name"), str)
        and all(isinstance(event.get(field), (int, float)) for field in ("ts", "dur"))
    )


def _from_zero(events: Sequence[Event]) -> list[Event]:
    """Shift times to the first event: a float of seconds since 1970 cannot hold nanoseconds."""
    origin = min((event["ts"] for event in events), default=0)
    return [{**event, "ts": event["ts"] - origin} for event in events]


def _device_lanes(events: Sequence[Event]) -> tuple[list[Interval], list[Interval]]:
    kernels = _busiest([e for e in events if e.get("cat") in _ON_DEVICE], "pid")
    window = _median_step(events, "gpu_user_annotation") or _median_step(events, "user_annotation")
    intervals = _within(kernels, window)
    sent = [i for i in intervals if _COMMUNICATING_KERNEL.search(i.label)]
    return [i for i in intervals if not _COMMUNICATING_KERNEL.search(i.label)], sent


def _cpu_lanes(events: Sequence[Event]) -> tuple[list[Interval], list[Interval]]:
    window = _median_step(events, "user_annotation")
    ops = [e for e in events if e.get("cat") == "cpu_op" and _OP.fullmatch(e["name"])]
    intervals = _within(_busiest(ops, "tid"), window)
    waits = merge((i.start, i.end) for i in intervals if _WAITING.match(i.label))
    computing = [i for i in _outermost(intervals) if not _WAITING.match(i.label)]
    compute = [
        Interval(start, end, interval.label)
        for interval in computing
        for start, end in subtract([(interval.start, interval.end)], waits)
    ]
    sent = [e for e in events if _COMMUNICATION_ON_CPU.match(e["name"])]
    return compute, _within(sent, window)


def _busiest(events: Sequence[Event], field: str) -> list[Event]:
    """The events of the thread (or device) with the most busy time."""
    groups: dict[Any, list[Event]] = {}
    for event in events:
        groups.setdefault(event.get(field), []).append(event)
    return max(groups.values(), key=lambda group: length(merge(map(_span, group))), default=[])


def _median_step(events: Iterable[Event], category: str) -> Span | None:
    spans = [
        _span(event)
        for event in events
        if event.get("cat") == category and _STEP.fullmatch(event["name"])
    ]
    by_length = sorted(spans, key=lambda span: span[1] - span[0])
    return by_length[len(spans) // 2] if spans else None


def _span(event: Event) -> Span:
    """The span of an event in seconds; traces are in microseconds."""
    return event["ts"] * 1e-6, (event["ts"] + event["dur"]) * 1e-6


def _within(events: Iterable[Event], window: Span | None) -> list[Interval]:
    """The events that start in `window`, in order."""
    found = [Interval(*_span(event), event["name"]) for event in events]
    if window is not None:
        found = [i for i in found if window[0] <= i.start < window[1]]
    return sorted(found, key=lambda interval: (interval.start, -interval.end))


def _outermost(intervals: Iterable[Interval]) -> list[Interval]:
    """The intervals, given in order, that no other contains: not `aten::mm` in `aten::matmul`."""
    found: list[Interval] = []
    for interval in intervals:
        if not found or interval.start >= found[-1].end:
            found.append(interval)
    return found


def _lane(intervals: Iterable[Interval], origin: float) -> Lane:
    return Lane(
        tuple(Interval(i.start - origin, i.end - origin, i.label, i.block) for i in intervals)
    )
