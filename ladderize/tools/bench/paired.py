"""Compare two variants that took turns: the ratio within each repeat, the median over repeats.

Two consecutive steps see the machine in the same state; medians over minutes do not.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import comb

CONFIDENCE = 0.95
BASELINES = ("standard", "bound", "free")


@dataclass(frozen=True)
class MedianInterval:
    """A median and its confidence interval.

    Attributes:
        ends: interval at a confidence of at least `CONFIDENCE`; None with too few repeats.
    """

    median: float
    ends: tuple[float, float] | None


def paired_ratio(own: Sequence[float], baseline: Sequence[float]) -> MedianInterval:
    """The median ratio of `own` to `baseline`, repeat by repeat.

    The ends are order statistics from the binomial (sign) test, which assumes no distribution of
    the noise.
    """
    ratios = sorted(mine / theirs for mine, theirs in zip(own, baseline, strict=True))
    outside = _outside(len(ratios))
    ends = None if outside is None else (ratios[outside], ratios[-1 - outside])
    return MedianInterval(statistics.median(ratios), ends)


def _outside(num: int) -> int | None:
    """How many of `num` sorted values lie below the interval; the same number lies above it."""
    found = None
    below = 0.0
    for k in range(num // 2):
        below += comb(num, k) / 2**num  # the chance that only k values are below the median
        if 2 * below > 1 - CONFIDENCE:
            break
        found = k
    return found


def step_values(name: str, steps: Mapping[str, Sequence[float]]) -> dict[str, float | None]:
    """The values of variant `name` for a `ResultRow`, from the step seconds of all variants.

    median_s, quartiles_s: median step time, and its interquartile range.
    standard_ratio, bound_ratio, free_ratio: step time over that variant's in the same repeat
        (`paired_ratio`); standard_ratio_low, …_high are the ends of the interval.
    """
    own = steps[name]
    found: dict[str, float | None] = {
        "median_s": statistics.median(own),
        "quartiles_s": _quartiles(own),
    }
    for baseline in BASELINES:
        if baseline in steps:
            found |= _ratio(f"{baseline}_ratio", paired_ratio(own, steps[baseline]))
    return found


def _ratio(name: str, found: MedianInterval) -> Iterator[tuple[str, float]]:
    yield name, found.median
    if found.ends is not None:
        low, high = found.ends
        yield f"{name}_low", low
        yield f"{name}_high", high


def _quartiles(seconds: Sequence[float]) -> float:
    if len(seconds) < 2:
        return 0.0
    low, _, high = statistics.quantiles(seconds, n=4)
    return high - low
