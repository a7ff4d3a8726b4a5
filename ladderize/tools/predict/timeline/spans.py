"""Set operations on time, represented as ordered disjoint spans.

merge     [0, 2] [1, 3] [5, 6]       → [0, 3] [5, 6]
subtract  [0, 3] [5, 6] - [2, 5.5]   → [0, 2] [5.5, 6]
"""

from collections.abc import Iterable, Sequence

Span = tuple[float, float]


def merge(spans: Iterable[Span]) -> tuple[Span, ...]:
    """The union of `spans`, without empty ones."""
    merged: list[Span] = []
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return tuple(merged)


def subtract(spans: Sequence[Span], others: Sequence[Span]) -> tuple[Span, ...]:
    """The parts of `spans` that no span of `others` covers. Both must be merged."""
    left: list[Span] = []
    at = 0
    for start, end in spans:
        while at < len(others) and others[at][1] <= start:
            at += 1
        for cut_start, cut_end in others[at:]:
            if cut_start >= end:
                break
            if start < cut_start:
                left.append((start, cut_start))
            start = max(start, cut_end)
        if start < end:
            left.append((start, end))
    return tuple(left)


def length(spans: Iterable[Span]) -> float:
    """The total length of disjoint `spans`, in seconds."""
    return sum(end - start for start, end in spans)
