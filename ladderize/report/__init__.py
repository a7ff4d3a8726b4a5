"""Reports on what was found in a model and how it is rewritten: `Report`, `last_report`.

builder.py ── data.py ── lines.py ── text.py, html.py     build, hold, lay out, draw
                ├─────── diff.py, digraph.py              other views
                └─────── publish.py                       last_report(), files, torch's trace
"""

from ladderize.report.data import (
    BlockReport,
    CollectiveReport,
    GraphReport,
    Outside,
    Refusal,
    SegmentReport,
    ShardReport,
    StepReport,
    StreamReport,
)
from ladderize.report.present.diff import Diff, Rewired
from ladderize.report.publish import last_report
from ladderize.report.report import Report

__all__ = [
    "BlockReport",
    "CollectiveReport",
    "Diff",
    "GraphReport",
    "Outside",
    "Refusal",
    "Report",
    "Rewired",
    "SegmentReport",
    "ShardReport",
    "StepReport",
    "StreamReport",
    "last_report",
]
