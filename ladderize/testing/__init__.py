"""Check a ladder against an independent eager reference, also on random residual models.

The references do not use graphs. The random models write residual sums in many forms.

    assert_ladder_equal                        compile a model, compare outputs and gradients
    eager_ladder, EagerLadder                  run any model as an eager ladder, with hooks
    run_ladder, ReferenceBlock, ReferenceNet   the recurrence in plain eager PyTorch
    assert_close, run_with_gradients           compare your own results
    ladderize.testing.nets                     random residual models by specification
    ladderize.testing.strategies               hypothesis strategies for them (needs hypothesis)
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
