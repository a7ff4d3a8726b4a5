"""What a ladder would gain on hardware that one need not have: `ladderize plan`.

Report ── workload.py ── variants.py ── forecast.py ──┬── plan.py ── show.py
 of a trace   costs for any   standard, ladder,       ├── limits.py: where the gain ends
              batch, length   parallel, bound         └── confidence.py
paper.py, fit.py     the table that hardware/calibrated.toml is fitted to
formulas.py          closed forms of a step
"""

from ladderize.tools.predict.planning.planner import Plan, PlannedBatch, plan

__all__ = ["Plan", "PlannedBatch", "plan"]
