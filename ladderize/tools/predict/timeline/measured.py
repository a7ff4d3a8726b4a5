"""A timeline from traces of the standard net and of its ladder."""

import dataclasses
from pathlib import Path

from ladderize.errors import LadderError
from ladderize.report.naming import block_name
from ladderize.report.report import Report
from ladderize.tools.predict.timeline.steps import Lane, Timeline, TimelineStep, key_of
from ladderize.tools.predict.timeline.trace import read_step


def measure(
    report: Report, standard: str | Path | None = None, ladder: str | Path | None = None
) -> Timeline:
    """The steps in the traces of `torch.profiler` at `standard` and `ladder`; one may be missing.

    Where a step holds as many all-reduces as `report` has blocks, they belong to them in order:
    nothing ever reorders collectives. Otherwise no interval is said to belong to a block.

    Raises:
        LadderError: no trace is given, or one cannot be read.
    """
    given = [(name, path) for name, path in (("standard", standard), ("ladder", ladder)) if path]
    if not given:
        raise LadderError("No trace is given: name that of the standard net, the ladder's or both.")
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
