"""How two variants that took turns compare: the ratio within each repeat, the median over all.

Two steps that ran one after the other saw the same machine; medians of minutes did not.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import comb

CONFIDENCE = 0.95
BASELINES = ("standard", "bound", "free")


@dataclass(frozen=True)
class MedianInterval:
    """A median, and two values between which that of infinitely many repeats lies.

    Attributes:
        ends: with a confidence of at least `CONFIDENCE`; None where there are too few repeats.
    """

    median: float
    ends: tuple[float, float] | None


def paired_ratio(own: Sequence[float], baseline: Sequence[float]) -> MedianInterval:
    """Of `own` over `baseline`, repeat by repeat.

    The ends are order statistics, after the binomial (sign) test: nothing is assumed of how the
    noise is distributed.
    """
    ratios = sorted(mine / theirs for mine, theirs in zip(own, baseline, strict=True))
    outside = _outside(len(ratios))
    ends = None if outside is None else (ratios[outside], ratios[-1 - outside])
    return MedianInterval(statistics.median(ratios), ends)


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


def step_values(name: str, steps: Mapping[str, Sequence[float]]) -> dict[str, float | None]:
    """Of variant `name`, beside the seconds of all that took turns with it, as `Row`s have them.

    median_s, quartiles_s: of a step, and how far its quartiles are apart.
    standard_ratio, bound_ratio, free_ratio: its step over that of the variant in the same repeat,
        as `paired_ratio` says, the ends of its interval as standard_ratio_low, …_high.
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
