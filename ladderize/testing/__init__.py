"""Check a ladder against an independent eager reference; and random residual nets to check with.

References know nothing of graphs; the nets come in the ways people spell residual sums.

    assert_ladder_equal                        compile a model, compare outputs and gradients
    eager_ladder, EagerLadder                  any model as an eager ladder, by hooks
    run_ladder, ReferenceBlock, ReferenceNet   the recurrence, in plain eager PyTorch
    assert_close, run_with_gradients           compare results of your own
    ladderize.testing.nets                     random residual nets by specification
    ladderize.testing.strategies               hypothesis strategies of them (needs hypothesis)
"""

from ladderize.testing.asserts import Differences, assert_ladder_equal
from ladderize.testing.reference import ReferenceBlock, ReferenceNet, run_ladder
from ladderize.testing.results import TOLERANCE, assert_close, run_with_gradients
from ladderize.testing.stale_reads import EagerLadder, eager_ladder

__all__ = [
    "TOLERANCE",
    "Differences",
    "EagerLadder",
    "ReferenceBlock",
    "ReferenceNet",
    "assert_close",
    "assert_ladder_equal",
    "eager_ladder",
    "run_ladder",
    "run_with_gradients",
]
