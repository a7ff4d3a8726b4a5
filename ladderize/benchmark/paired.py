"""How two variants that took turns compare: the ratio within each repeat, the median over all.

Two steps that ran one after the other saw the same machine; medians of minutes did not.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A median, and two values between which that of infinitely many repeats lies.

    Attributes:
        ends: with a confidence of at least `CONFIDENCE`; None where there are too few repeats.
    """

    median: float
    ends: tuple[float, float] | None


def paired_ratio(own: Sequence[float], baseline: Sequence[float]) -> Interval:
    """Of `own` over `baseline`, repeat by repeat.

    The ends are order statistics, after the binomial (sign) test: nothing is assumed of how the
    noise is distributed.
    """
    ratios = sorted(mine / theirs for mine, theirs in zip(own, baseline, strict=True))
    outside = _outside(len(ratios))
    ends = None if outside is None else (ratios[outside], ratios[-1 - outside])
    return Interval(statistics.median(ratios), ends)


def _outside(num: int) -> int | None:
    """How many of `num` sorted values lie below the interval, and as many above it."""
    found = None
    below = 0.0
    for k in range(num // 2):
        below += comb(num, k) / 2**num  # the chance that only k values are below the median
        if 2 * below > 1 - CONFIDENCE:
            break
        found = k
    return found
