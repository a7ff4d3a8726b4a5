"""Closed forms of a step, as sympy expressions; the tests hold the list schedule to them.

N blocks that are alike compute for c each and send for m; computing is slower by the fraction s
while the link is busy:

    standard   N (c + m)
    ladder     c + (N - 1) max(c + s m, m) + m       of any staleness above 0
    parallel   N/2 (2 c + m)                         pairs of blocks
    bound      N c

Behind a block an all-reduce is hidden whole where m <= c / (1 - s).
"""

from collections.abc import Mapping, Sequence

import sympy
from sympy import Max, Symbol

c, m, s = (Symbol(name, nonnegative=True) for name in "cms")
N, n = Symbol("N", positive=True), Symbol("n", nonnegative=True)
# Of m: latency, bytes that cross the link for one token, tokens, bytes per second.
alpha, sent, tokens, beta = (
    Symbol(name, positive=True) for name in ("alpha", "sent", "tokens", "beta")
)

# From one block to the next in a ladder: both start when the link takes the earlier all-reduce.
PERIOD = Max(c + s * m, m)

STEPS: Mapping[str, sympy.Expr] = {
    "standard": N * (c + m),
    "ladder": c + (N - 1) * PERIOD + m,
    "parallel": N / 2 * (2 * c + m),
    "bound": N * c,
}
# With n of the blocks converted, the first one not among them.
PARTIAL = N * (c + m) - n * (c + m - PERIOD)

# The longest all-reduce that one block hides whole.
HIDDEN = c / (1 - s)
_REDUCE = sympy.Eq(alpha + sent * tokens / beta, HIDDEN)
# Where that is reached, with c as it is: a step that reads weights takes as long for more tokens.
HIDING_BANDWIDTH: sympy.Expr = sympy.solve(_REDUCE, beta)[0]
HIDING_TOKENS: sympy.Expr = sympy.solve(_REDUCE, tokens)[0]


def ladder_seconds(
    computes: Sequence[float], reduces: Sequence[float], contention: float = 0.0
) -> float:
    """Of a ladder of staleness 1 whose blocks differ; every one is converted.

    Block i runs beside the all-reduce of block i - 1, and both start at the same time.
    """
    total = computes[0]
    for compute, reduce in zip(computes[1:], reduces, strict=False):
        total += max(compute + contention * reduce, reduce)
    return total + reduces[-1]
