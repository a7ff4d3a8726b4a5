"""Check a ladder against an independent eager reference; and random residual nets to check with.

The reference knows nothing of graphs; the nets come in the ways people spell residual sums.

    run_ladder, ReferenceBlock, ReferenceNet   the recurrence, in plain eager PyTorch
    assert_ladder_equal                        two results agree within the tolerance of a dtype
    check_model                                compile a model, compare outputs and gradients
    ladderize.testing.nets                     random residual nets by specification
    ladderize.testing.strategies               hypothesis strategies of them (needs hypothesis)
"""

from ladderize.testing.asserts import (
    TOLERANCE,
    Differences,
    assert_ladder_equal,
    check_model,
    run_with_gradients,
)
from ladderize.testing.reference import ReferenceBlock, ReferenceNet, run_ladder

__all__ = [
    "TOLERANCE",
    "Differences",
    "ReferenceBlock",
    "ReferenceNet",
    "assert_ladder_equal",
    "check_model",
    "run_ladder",
    "run_with_gradients",
]
