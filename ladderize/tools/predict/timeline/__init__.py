"""The timeline of a step: when each block computes and communicates, predicted or measured.

Report ── predicted.py (two_lanes.py: the schedule, also the planner's) ──┐
                                                                          ├── steps.py: Timeline
traces ── trace.py (spans.py) ────────────────────────────────────────────┘     └ perfetto.py
"""

from ladderize.tools.predict.timeline.perfetto import write_perfetto
from ladderize.tools.predict.timeline.predicted import predict
from ladderize.tools.predict.timeline.steps import BlockKey, Interval, Lane, Timeline, TimelineStep
from ladderize.tools.predict.timeline.trace import measure, read_step

__all__ = [
    "BlockKey",
    "Interval",
    "Lane",
    "Timeline",
    "TimelineStep",
    "measure",
    "predict",
    "read_step",
    "write_perfetto",
]
