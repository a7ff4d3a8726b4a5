"""What a ladder would gain on hardware that one need not have: `ladderize plan`.

Report ── workload.py ── planned_nets.py ── forecast.py ──┬── planner.py ── tables.py
 of a trace   costs for any   standard, ladder,           ├── limits.py: where the gain ends
              batch, length   parallel, bound             └── confidence.py

hardware/calibrated.toml is fitted by bench/calibrate.py.
"""

from ladderize.tools.predict.planning.planner import LadderPlan, PlannedBatch, plan

__all__ = ["LadderPlan", "PlannedBatch", "plan"]
