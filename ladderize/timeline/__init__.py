"""When each block of a step computes and communicates: predicted from its costs, or measured.

Report ── predict.py ──┐ tasks.py, two_lanes.py: the schedule, the planner's too
                       ├── data.py: Timeline of Steps ── perfetto.py, ladderize/plot
traces ── measure.py ──┘
   └ trace.py, spans.py
"""

from ladderize.timeline.data import BlockKey, Interval, Lane, Step, Timeline
from ladderize.timeline.measure import measure
from ladderize.timeline.perfetto import write_perfetto
from ladderize.timeline.predict import predict
from ladderize.timeline.trace import read_step

__all__ = [
    "BlockKey",
    "Interval",
    "Lane",
    "Step",
    "Timeline",
    "measure",
    "predict",
    "read_step",
    "write_perfetto",
]
